//! `--timeline`: a session in the JSON trace format of Chrome and Perfetto
//! (Trace Event Format, the array form). `docs/timeline.md` tells what is in it.
//!
//! An event is one write, so the file grows and memory does not; the format
//! lets a file end without its last bracket, as that of a killed session does.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value, json};
use tracing::Event;

use super::Caller;
use super::line::Fields;

/// The process that devices are shown in: beyond any that Linux has
/// (PID_MAX_LIMIT is 4,194,304). Its threads are the devices.
const DEVICES: u64 = 4_194_305;

/// Threads that are remembered; then all are looked at again.
const MOST_THREADS: usize = 4096;

/// The file, being written.
pub(crate) struct Timeline(Mutex<State>);

struct State {
    /// None when it is finished, or cannot be written any more.
    file: Option<File>,
    /// The processes of threads that have been named.
    threads: HashMap<u64, u64>,
    /// The numbers of devices that have been named.
    devices: HashMap<String, u64>,
}

impl Timeline {
    pub(super) fn create(path: &Path) -> io::Result<Self> {
        let mut file = File::create(path)?;
        let name = named("process_name", DEVICES, DEVICES, "devices");
        file.write_all(format!("[\n{name}").as_bytes())?;
        Ok(Self(Mutex::new(State {
            file: Some(file),
            threads: HashMap::new(),
            devices: HashMap::new(),
        })))
    }

    /// Closes the array. What happens later is not written.
    pub(crate) fn finish(&self) {
        if let Some(mut file) = self.lock().file.take() {
            // A full disk has been seen by the writes before, or will be.
            let _ = file.write_all(b"\n]\n");
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn event(&self, at: Duration, caller: Option<Caller>, event: &Event<'_>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let name = event.metadata().name();
        let mut values = Map::new();
        for (key, value) in fields.values {
            values.insert(key.to_owned(), value);
        }
        let mut state = self.lock();
        let mut text = String::with_capacity(256);
        let (process, thread) = state.track(name, &values, caller, &mut text);
        let mut object = json!({
            "name": name,
            "cat": name.split('_').next(),
            "pid": process,
            "tid": thread,
            "ts": microseconds(at),
        });
        let more = match (name, caller) {
            ("dma_map" | "dma_unmap", _) => mapping(name, &values),
            ("dma_work", _) => {
                let length = values.get("microseconds").and_then(Value::as_f64);
                let length = length.unwrap_or_default();
                json!({ "ph": "X", "ts": (microseconds(at) - length).max(0.0), "dur": length })
            }
            (_, Some(caller)) if is_call(name) => json!({
                "ph": "X",
                "ts": microseconds(caller.since),
                "dur": microseconds(at.saturating_sub(caller.since)),
            }),
            _ => json!({ "ph": "i", "s": "t" }),
        };
        if let (Some(object), Value::Object(more)) = (object.as_object_mut(), more) {
            object.extend(more);
            object.insert("args".to_owned(), Value::Object(values));
        }
        let _ = write!(text, ",\n{object}");
        state.write(&text);
    }
}

/// A mapping is a span of time that belongs to no thread.
fn mapping(name: &str, values: &Map<String, Value>) -> Value {
    let of = |key: &str| match values.get(key) {
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
        None => String::new(),
    };
    let (space, first, last) = (of("space"), of("first"), of("last"));
    json!({
        "ph": if name == "dma_map" { "b" } else { "e" },
        "cat": "mapping",
        "id": format!("{space}:{first}"),
        "name": format!("space {space}: {first}-{last}"),
    })
}

/// Whether an event tells of a whole call.
fn is_call(name: &str) -> bool {
    ["ioctl_", "region_", "file_open", "inject_call"]
        .iter()
        .any(|start| name.starts_with(start))
}

impl State {
    /// The process and the thread that an event is shown in; names them in
    /// `text` if they are new.
    fn track(
        &mut self,
        name: &str,
        values: &Map<String, Value>,
        caller: Option<Caller>,
        text: &mut String,
    ) -> (u64, u64) {
        let device = values.get("device").and_then(Value::as_str);
        if let Some(device) = device.filter(|_| !is_call(name)) {
            return (DEVICES, self.device(device, text));
        }
        match caller {
            Some(caller) => (self.process(caller.thread, text), caller.thread),
            None => (DEVICES, DEVICES),
        }
    }

    fn device(&mut self, device: &str, text: &mut String) -> u64 {
        if let Some(number) = self.devices.get(device) {
            return *number;
        }
        let count = u64::try_from(self.devices.len()).unwrap_or(u64::MAX);
        let number = DEVICES.saturating_add(1).saturating_add(count);
        self.devices.insert(device.to_owned(), number);
        let _ = write!(text, ",\n{}", named("thread_name", DEVICES, number, device));
        number
    }

    /// The process of a thread. One that has gone is its own.
    fn process(&mut self, thread: u64, text: &mut String) -> u64 {
        if let Some(process) = self.threads.get(&thread) {
            return *process;
        }
        if self.threads.len() >= MOST_THREADS {
            self.threads.clear();
        }
        let status = fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
        let field = |name: &str| {
            let mut lines = status.lines();
            lines.find_map(|line| Some(line.strip_prefix(name)?.trim()))
        };
        let process = field("Tgid:").and_then(|id| id.parse().ok());
        let process = process.unwrap_or(thread);
        self.threads.insert(thread, process);
        if let Some(name) = field("Name:") {
            let _ = write!(text, ",\n{}", named("thread_name", process, thread, name));
            if process == thread {
                let _ = write!(text, ",\n{}", named("process_name", process, thread, name));
            }
        }
        process
    }

    fn write(&mut self, text: &str) {
        let written = match &mut self.file {
            Some(file) => file.write_all(text.as_bytes()),
            None => return,
        };
        if let Err(error) = written {
            // Half an event would spoil what stands there.
            eprintln!("iogate: the timeline ends here: {error}");
            self.file = None;
        }
    }
}

/// The event that gives a process or a thread its name.
fn named(what: &str, process: u64, thread: u64, name: &str) -> Value {
    json!({ "name": what, "ph": "M", "pid": process, "tid": thread, "args": { "name": name } })
}

fn microseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}
