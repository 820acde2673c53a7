//! One event as one line: `seconds thread name key=value...`, or JSON.

use std::fmt::{self, Write as _};
use std::time::Duration;

use serde_json::{Map, Value, json};
use tracing::Event;
use tracing::field::{Field, Visit};
use tracing::span::Attributes;

/// How lines look.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Form {
    Text,
    Json,
}

/// The field that names a client's thread.
const THREAD: &str = "thread";

/// The thread that a span is for.
pub(super) fn thread_of(span: &Attributes<'_>) -> Option<u64> {
    let mut fields = Fields::default();
    span.record(&mut fields);
    fields.thread
}

/// The line, with its newline. Without a `caller`, our own thread is told.
pub(super) fn render(form: Form, at: Duration, caller: Option<u64>, event: &Event<'_>) -> String {
    let mut fields = Fields::default();
    event.record(&mut fields);
    let thread = caller.unwrap_or_else(|| {
        u64::from(
            rustix::thread::gettid()
                .as_raw_nonzero()
                .get()
                .cast_unsigned(),
        )
    });
    let name = event.metadata().name();
    let mut line = String::with_capacity(128);
    match form {
        Form::Text => {
            let _ = write!(line, "{:.6} {thread} {name}", at.as_secs_f64());
            for (key, value) in &fields.values {
                match value {
                    Value::String(text)
                        if text.contains(|c: char| c.is_whitespace() || c.is_control()) =>
                    {
                        let _ = write!(line, " {key}={text:?}");
                    }
                    Value::String(text) => {
                        let _ = write!(line, " {key}={text}");
                    }
                    value => {
                        let _ = write!(line, " {key}={value}");
                    }
                }
            }
        }
        Form::Json => {
            let mut object = Map::new();
            object.insert("seconds".to_owned(), json!(at.as_secs_f64()));
            object.insert(THREAD.to_owned(), json!(thread));
            object.insert("event".to_owned(), json!(name));
            for (key, value) in fields.values {
                object.insert(key.to_owned(), value);
            }
            let _ = write!(line, "{}", Value::Object(object));
        }
    }
    line.push('\n');
    line
}

/// The fields of an event, in their order.
#[derive(Default)]
pub(super) struct Fields {
    thread: Option<u64>,
    pub(super) values: Vec<(&'static str, Value)>,
}

impl Visit for Fields {
    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == THREAD {
            self.thread = Some(value);
        } else {
            self.values.push((field.name(), json!(value)));
        }
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.values.push((field.name(), json!(value)));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.values.push((field.name(), json!(value)));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.values.push((field.name(), json!(value)));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.values.push((field.name(), json!(value)));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.values
            .push((field.name(), json!(format!("{value:?}"))));
    }
}
