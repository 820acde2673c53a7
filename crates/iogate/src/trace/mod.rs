//! `--trace` and `--timeline`: events of a session, chosen by globs, one line
//! each, or all of them over time.
//!
//! Events are `tracing` events of the target `iogate`; `docs/trace.md` lists
//! them. Without either nothing is installed and an event costs one load.

mod glob;
mod line;
mod timeline;

use std::cell::Cell;
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};

use line::Form;
pub(crate) use timeline::Timeline;

/// The list that `--trace help` prints.
pub(crate) const EVENTS: &str = include_str!("../../../../docs/trace.md");

const TARGET: &str = "iogate";

/// Whether some event's name matches `pattern`.
pub(crate) fn exists(pattern: &str) -> bool {
    let rows = EVENTS.lines().filter_map(|line| line.strip_prefix("| `"));
    let mut names = rows.filter_map(|row| row.split('`').next());
    names.any(|name| glob::matches(pattern, name))
}

/// What is installed, if something is.
static WANTED: OnceLock<Wanted> = OnceLock::new();

struct Wanted {
    patterns: Vec<String>,
    timeline: bool,
}

/// Whether anybody hears of events of this name.
pub(crate) fn wants(name: &str) -> bool {
    let wanted = WANTED.get();
    wanted.is_some_and(|wanted| wanted.timeline || wanted.matches(name))
}

impl Wanted {
    fn matches(&self, name: &str) -> bool {
        let mut patterns = self.patterns.iter();
        patterns.any(|pattern| glob::matches(pattern, name))
    }
}

/// Starts tracing the events that match one of `patterns`, to standard error
/// or to `file`; a file named `*.jsonl` gets JSON. All events go to the
/// timeline, if one is wanted.
pub(crate) fn start(
    patterns: &[String],
    file: Option<&Path>,
    timeline: Option<&Path>,
) -> io::Result<Option<Arc<Timeline>>> {
    if patterns.is_empty() && timeline.is_none() {
        return Ok(None);
    }
    let json = file.is_some_and(|path| path.extension().is_some_and(|end| end == "jsonl"));
    let output: Box<dyn Write + Send> = match file {
        Some(path) => Box::new(File::create(path)?),
        None => Box::new(io::stderr()),
    };
    let timeline = timeline.map(Timeline::create).transpose()?.map(Arc::new);
    let wanted = WANTED.get_or_init(|| Wanted {
        patterns: patterns.to_vec(),
        timeline: timeline.is_some(),
    });
    let events = Events {
        started: Instant::now(),
        wanted,
        form: if json { Form::Json } else { Form::Text },
        output: Mutex::new(output),
        timeline: timeline.clone(),
    };
    tracing::subscriber::set_global_default(events).map_err(io::Error::other)?;
    Ok(timeline)
}

/// No thread has this number.
const NOBODY: u64 = u64::MAX;

/// Whose call is being answered, and since when.
#[derive(Clone, Copy)]
struct Caller {
    thread: u64,
    /// Since the start of the trace.
    since: Duration,
}

thread_local! {
    /// The client's thread whose call this thread is answering.
    static CALLER: Cell<Option<Caller>> = const { Cell::new(None) };
}

/// Writes matching events.
struct Events {
    started: Instant,
    wanted: &'static Wanted,
    form: Form,
    output: Mutex<Box<dyn Write + Send>>,
    timeline: Option<Arc<Timeline>>,
}

impl Subscriber for Events {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.enabled(metadata) {
            Interest::always()
        } else {
            Interest::never()
        }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Spans tell who calls: they are wanted with whatever event.
        metadata.target() == TARGET
            && (metadata.is_span() || self.wanted.timeline || self.wanted.matches(metadata.name()))
    }

    fn event(&self, event: &Event<'_>) {
        let (at, caller) = (self.started.elapsed(), CALLER.get());
        if let Some(timeline) = &self.timeline {
            timeline.event(at, caller, event);
            if !self.wanted.matches(event.metadata().name()) {
                return;
            }
        }
        let caller = caller.map(|caller| caller.thread);
        let line = line::render(self.form, at, caller, event);
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
        let thread = call.into_u64();
        CALLER.set((thread != NOBODY).then(|| Caller {
            thread,
            since: self.started.elapsed(),
        }));
    }

    fn exit(&self, _: &Id) {
        CALLER.set(None);
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
}
