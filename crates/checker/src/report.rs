//! The machine-readable report. `docs/report.md` describes the schema.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use iogate_dma::Span;
use iogate_host::Actor;
use serde_json::{Value, json};

use crate::cause::Cause;
use crate::checker::{Checker, State};
use crate::history::{Deed, Known, Mapping};
use crate::{StackId, sarif, text};

/// The version of the report's schema: changed when a reader of the old one
/// would be misled.
pub const SCHEMA: u32 = 1;

/// Everything that the checker found.
#[derive(Clone, PartialEq, Debug)]
pub struct Report {
    value: Value,
}

impl Report {
    pub(crate) fn new(checker: &Checker, state: &State) -> Self {
        let writer = Writer { checker };
        let live = state.history.live_count();
        Self {
            value: json!({
                "schema": SCHEMA,
                "faults": {
                    "accesses": state.causes.faults,
                    "not_kept": state.causes.beyond,
                    "causes": state.causes.list().iter().map(|c| writer.cause(c)).collect::<Vec<_>>(),
                },
                "leaks": {
                    "mappings": state.leak_count,
                    "standing": live,
                    "details": state.leaks.iter().map(|(space, mapping)| {
                        let mut value = writer.mapping(mapping);
                        if let Some(object) = value.as_object_mut() {
                            object.insert("space".to_owned(), json!(space.0));
                        }
                        value
                    }).collect::<Vec<_>>(),
                },
                "history_forgotten": state.history.forgotten(),
            }),
        }
    }

    /// Adds a fact about the session under `key`: the program, its status.
    pub fn set(&mut self, key: &str, value: Value) {
        if let Some(object) = self.value.as_object_mut() {
            object.insert(key.to_owned(), value);
        }
    }

    /// The report as JSON.
    pub fn to_json(&self) -> String {
        format!("{:#}\n", self.value)
    }

    /// The report as SARIF 2.1.0.
    pub fn to_sarif(&self) -> String {
        format!("{:#}\n", sarif::of(&self.value))
    }

    /// Writes the report, as SARIF if the name ends in `.sarif`, beside `path` and renames it into place, so that a
    /// reader sees a whole report or none. A link is followed; what is no
    /// regular file (a pipe, a device) is written to. `%p` in the name becomes
    /// `process`.
    pub fn write(&self, path: &Path, process: u32) -> io::Result<PathBuf> {
        let name = path.to_string_lossy().replace("%p", &process.to_string());
        let text = match name.ends_with(".sarif") {
            true => self.to_sarif(),
            false => self.to_json(),
        };
        let target = fs::canonicalize(&name).unwrap_or_else(|_| PathBuf::from(&name));
        if fs::metadata(&target).is_ok_and(|found| !found.is_file()) {
            let mut file = fs::OpenOptions::new().write(true).open(&target)?;
            file.write_all(text.as_bytes())?;
            return Ok(target);
        }
        let mut partial = target.clone().into_os_string();
        partial.push(format!(".{process}.partial"));
        let partial = PathBuf::from(partial);
        let written = fs::write(&partial, text).and_then(|()| fs::rename(&partial, &target));
        if written.is_err() {
            // The target's own error is the one that tells the user.
            let _ = fs::remove_file(&partial);
        }
        written.map(|()| target)
    }
}

struct Writer<'a> {
    checker: &'a Checker,
}

impl Writer<'_> {
    fn cause(&self, cause: &Cause) -> Value {
        let fault = &cause.fault;
        let (history, mapping, unmapped) = match &cause.known {
            Known::Live(mapping) => ("mapped", Some(mapping), None),
            Known::Gone(gone) => ("unmapped", Some(&gone.mapping), Some(&gone.unmapped)),
            Known::Never(nearest) => ("never", nearest.as_ref(), None),
        };
        json!({
            "number": cause.number,
            "times": cause.times,
            "device": fault.source_id.to_string(),
            "model": self.checker.outside.model(fault.source_id.function()),
            "access": fault.access.to_string(),
            "first": hex(fault.span).0,
            "last": hex(fault.span).1,
            "reason": fault.reason.to_string(),
            "at_seconds": self.seconds(cause.at),
            "history": history,
            "history_is_partial": cause.history_is_partial,
            "mapping": mapping.map(|mapping| self.mapping(mapping)),
            "unmapped": unmapped.map(|deed| self.deed(deed)),
            "answer": cause.answer,
            "stack": self.stack(cause.stack),
            "text": text::headline(cause, &*self.checker.outside),
        })
    }

    fn mapping(&self, mapping: &Mapping) -> Value {
        json!({
            "first": hex(mapping.span).0,
            "last": hex(mapping.span).1,
            "rights": mapping.rights.to_string(),
            "mapped": self.deed(&mapping.mapped),
            "memory_taken_away": mapping.revoked.as_ref().map(|deed| self.deed(deed)),
        })
    }

    fn deed(&self, deed: &Deed) -> Value {
        json!({
            "call": deed.via.name(),
            "at_seconds": self.seconds(deed.at),
            "process": deed.by.map(|Actor { process, .. }| process),
            "thread": deed.by.map(|Actor { thread, .. }| thread),
            "stack": self.stack(deed.stack),
        })
    }

    fn stack(&self, stack: Option<StackId>) -> Option<Value> {
        let frames: Vec<_> = self
            .checker
            .outside
            .frames(stack?)
            .into_iter()
            .map(|frame| {
                json!({
                    "address": format!("{:#x}", frame.address),
                    "module": frame.module,
                    "function": frame.function,
                    "file": frame.file,
                    "line": frame.line,
                })
            })
            .collect();
        Some(json!({ "frames": frames }))
    }

    fn seconds(&self, at: std::time::Instant) -> f64 {
        at.saturating_duration_since(self.checker.started)
            .as_secs_f64()
    }
}

fn hex(span: Span) -> (String, String) {
    (span.first().to_string(), span.last().to_string())
}
