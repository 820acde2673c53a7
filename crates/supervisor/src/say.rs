//! What a person is told on stderr.

use std::io::Write;

/// Says a line. A stderr that is closed is no reason to stop.
pub(crate) fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "iogate: {text}");
}
