//! How a step can end other than well: failed, not run, or interrupted.

use std::fmt;
use std::path::PathBuf;

/// Why a step did not pass.
#[derive(Clone, Debug)]
pub(crate) enum Stop {
    /// Something that should hold does not.
    Failed {
        message: String,
        /// The log worth showing, if it is not the case's own.
        log: Option<PathBuf>,
    },
    /// This machine cannot run it.
    NotRun { reason: String, remedy: String },
    /// The person pressed Ctrl-C.
    Interrupted,
}

impl Stop {
    /// A failure explained by one sentence and the case's own log.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self::Failed {
            message: message.into(),
            log: None,
        }
    }

    /// Something this machine lacks, and what a person can do about it.
    pub(crate) fn not_run(reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::NotRun {
            reason: reason.into(),
            remedy: remedy.into(),
        }
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed { message, .. } => out.write_str(message),
            Self::NotRun { reason, remedy } => write!(out, "{reason}; {remedy}"),
            Self::Interrupted => out.write_str("interrupted"),
        }
    }
}

impl From<std::io::Error> for Stop {
    fn from(error: std::io::Error) -> Self {
        Self::failed(error.to_string())
    }
}

/// Gives an I/O error the name of the thing it happened to.
pub(crate) trait About<T> {
    /// Names the thing.
    fn about(self, what: impl fmt::Display) -> Result<T, Stop>;
}

impl<T> About<T> for std::io::Result<T> {
    fn about(self, what: impl fmt::Display) -> Result<T, Stop> {
        self.map_err(|error| Stop::failed(format!("{what}: {error}")))
    }
}
