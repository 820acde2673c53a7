//! Runs a program against software devices from a Rust test, and says how it
//! ended and what the checker found. It starts the `iogate` command, which has
//! to be installed or named ([`Machine::iogate`]).
//!
//! ```no_run
//! use std::process::Command;
//! use iogate_harness::Machine;
//!
//! # fn main() -> Result<(), iogate_harness::Error> {
//! let outcome = Machine::new().nvme("64 MiB").run(&Command::new("./driver"))?;
//! assert!(outcome.status.success(), "{}", outcome.stderr);
//! assert!(outcome.faults.is_empty(), "{:?}", outcome.faults);
//! assert_eq!(outcome.leaks, 0);
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod outcome;

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

pub use outcome::{Fault, Outcome};

/// A machine for programs to run on. Without a device it is the default
/// machine of `iogate run`: one edu and one nvme.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    iogate: Option<PathBuf>,
    options: Vec<OsString>,
}

/// Why there is no outcome.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The `iogate` command could not be started.
    #[error("cannot start {program}: {source}; install iogate, set IOGATE to it, or name it", program = .program.display())]
    NotStarted {
        /// What was started.
        program: PathBuf,
        /// What came of it.
        source: io::Error,
    },
    /// `iogate run` ended without a report: what it said is the reason.
    #[error("iogate run failed: {0}")]
    Failed(String),
    /// The report is none that this version reads.
    #[error("the report cannot be read: {0}")]
    Report(String),
}

impl Machine {
    /// The default machine.
    pub fn new() -> Self {
        Self::default()
    }

    /// The `iogate` command to be used; otherwise it is what the environment
    /// variable IOGATE names, or `iogate` in PATH.
    pub fn iogate(mut self, program: impl Into<PathBuf>) -> Self {
        self.iogate = Some(program.into());
        self
    }

    /// Adds an NVMe whose namespace has this size ("64 MiB").
    pub fn nvme(self, size: &str) -> Self {
        // A comma in a value is written twice.
        self.device(&format!("nvme,size={}", size.replace(',', ",,")))
    }

    /// Adds an edu, the educational device of QEMU.
    pub fn edu(self) -> Self {
        self.device("edu")
    }

    /// Adds a device, as `--device` does: `iogate run --device help` lists
    /// models and what they know.
    pub fn device(self, device: &str) -> Self {
        self.option("--device", device)
    }

    /// Takes a machine file, as `--machine` does.
    pub fn file(self, path: impl Into<PathBuf>) -> Self {
        self.option("--machine", path.into())
    }

    /// Has something fail, as `--inject` does: `iogate run --inject help`.
    pub fn inject(self, rules: &str) -> Self {
        self.option("--inject", rules)
    }

    /// Has call stacks taken for the report, as `--stacks` does.
    pub fn stacks(mut self) -> Self {
        self.options.push("--stacks".into());
        self
    }

    /// Any other option of `iogate run` that has a value.
    pub fn option(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.options.push(name.into());
        self.options.push(value.into());
        self
    }

    /// Runs a program to its end: its name, arguments, directory and
    /// environment as `command` has them. Its standard input is empty, what it
    /// prints is in the outcome.
    ///
    /// # Errors
    /// [`Error`] where iogate cannot run it. A program that fails is an
    /// [`Outcome`].
    pub fn run(&self, command: &Command) -> Result<Outcome, Error> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("iogate-report-{}-{number}.json", std::process::id());
        let report = Temporary(std::env::temp_dir().join(name));
        let program = match &self.iogate {
            Some(program) => program.clone(),
            None => std::env::var_os("IOGATE").map_or_else(|| "iogate".into(), PathBuf::from),
        };
        let mut iogate = Command::new(&program);
        iogate.arg("run").args(&self.options);
        iogate.arg("--report").arg(&report.0).arg("--");
        iogate.arg(command.get_program()).args(command.get_args());
        if let Some(directory) = command.get_current_dir() {
            iogate.current_dir(directory);
        }
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => iogate.env(key, value),
                None => iogate.env_remove(key),
            };
        }
        iogate.stdin(std::process::Stdio::null());
        let output = iogate
            .output()
            .map_err(|source| Error::NotStarted { program, source })?;
        match std::fs::read(&report.0) {
            Ok(text) => Outcome::new(output, &text),
            Err(_) => {
                let said = String::from_utf8_lossy(&output.stderr);
                Err(Error::Failed(said.trim_end().to_owned()))
            }
        }
    }
}

/// A file that goes with us.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // There is none if iogate did not start.
        let _ = std::fs::remove_file(&self.0);
    }
}
