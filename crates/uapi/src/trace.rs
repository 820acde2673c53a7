//! How a call's outcome reads in a trace.

use std::fmt;

use crate::{Answer, Errno};

/// A call's outcome: a number, or an errno by name.
pub(crate) struct Told<'a>(pub(crate) &'a Result<Answer, Errno>);

impl fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Ok(Answer {
                install: Some(file),
                ..
            }) => write!(f, "file {}", file.0),
            Ok(answer) if answer.value < 0 => {
                let errno = i32::try_from(answer.value.unsigned_abs()).unwrap_or(i32::MAX);
                fmt::Display::fmt(&Errno(errno), f)
            }
            Ok(answer) => fmt::Display::fmt(&answer.value, f),
            Err(errno) => fmt::Display::fmt(errno, f),
        }
    }
}
