//! `--trace`: events of a session, one line each, chosen by globs.
//!
//! Events are `tracing` events of the target `iogate`; `docs/trace.md` lists
//! them. Without a pattern nothing is installed and an event costs one load.

mod glob;
mod line;

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};

use line::Form;

/// The list that `--trace help` prints.
pub(crate) const EVENTS: &str = include_str!("../../../../docs/trace.md");

const TARGET: &str = "iogate";

/// Whether some event's name matches `pattern`.
pub(crate) fn exists(pattern: &str) -> bool {
    let rows = EVENTS.lines().filter_map(|line| line.strip_prefix("| `"));
    let mut names = rows.filter_map(|row| row.split('`').next());
    names.any(|name| glob::matches(pattern, name))
}

/// Starts tracing the events that match one of `patterns`, to standard error
/// or to `file`; a file named `*.jsonl` gets JSON.
pub(crate) fn start(patterns: &[String], file: Option<&Path>) -> io::Result<()> {
    if patterns.is_empty() {
        return Ok(());
    }
    let json = file.is_some_and(|path| path.extension().is_some_and(|end| end == "jsonl"));
    let output: Box<dyn Write + Send> = match file {
        Some(path) => Box::new(File::create(path)?),
        None => Box::new(io::stderr()),
    };
    let lines = Lines {
        started: Instant::now(),
        patterns: patterns.to_vec(),
        form: if json { Form::Json } else { Form::Text },
        output: Mutex::new(output),
    };
    tracing::subscriber::set_global_default(lines).map_err(io::Error::other)
}

/// No thread has this number.
const NOBODY: u64 = u64::MAX;

thread_local! {
    /// The client's thread whose call is being answered.
    static CALLER: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Writes matching events.
struct Lines {
    started: Instant,
    patterns: Vec<String>,
    form: Form,
    output: Mutex<Box<dyn Write + Send>>,
}

impl Subscriber for Lines {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.enabled(metadata) {
            Interest::always()
        } else {
            Interest::never()
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event()
            && metadata.target() == TARGET
            && self
                .patterns
                .iter()
                .any(|pattern| glob::matches(pattern, metadata.name()))
    }

    fn event(&self, event: &Event<'_>) {
        let line = line::render(self.form, self.started.elapsed(), CALLER.get(), event);
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        // One write a line, so that a killed session loses none.
        let _ = output.write_all(line.as_bytes());
    }

    /// The one kind of span is a client's call; it is known by the thread
    /// that makes it.
    fn new_span(&self, call: &Attributes<'_>) -> Id {
        Id::from_u64(line::thread_of(call).unwrap_or(NOBODY))
    }

    fn enter(&self, call: &Id) {
        CALLER.set(Some(call.into_u64()).filter(|thread| *thread != NOBODY));
    }

    fn exit(&self, _: &Id) {
        CALLER.set(None);
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
}
