//! How a program ended and what was found.

use std::process::{ExitStatus, Output};

use serde_json::Value;

use crate::Error;

/// The version of the report that is read. `docs/report.md`.
const SCHEMA: u64 = 1;

/// How a program ended, and what the checker found.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The program's own, also where a signal killed it.
    pub status: ExitStatus,
    /// What it printed.
    pub stdout: String,
    /// What it and iogate printed to standard error.
    pub stderr: String,
    /// The causes of refused accesses, in the order of the first.
    pub faults: Vec<Fault>,
    /// Mappings that were never unmapped.
    pub leaks: u64,
    /// The whole report: `docs/report.md`.
    pub report: Value,
}

/// One cause of refused accesses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fault {
    /// The device's PCI address ("0000:01:00.0").
    pub device: String,
    /// Its model ("nvme").
    pub model: String,
    /// `read`, `write`, `atomic` or `execute`.
    pub access: String,
    /// The first byte refused.
    pub iova: u64,
    /// Why, in words ("not mapped").
    pub reason: String,
    /// How often.
    pub times: u64,
    /// All of it in one line.
    pub text: String,
}

impl Outcome {
    pub(crate) fn new(output: Output, report: &[u8]) -> Result<Self, Error> {
        let report: Value =
            serde_json::from_slice(report).map_err(|error| Error::Report(error.to_string()))?;
        if report["schema"] != SCHEMA {
            return Err(Error::Report(format!(
                "it has schema {}, known is {SCHEMA}",
                report["schema"]
            )));
        }
        if let Some(why) = report["status"]["broken"].as_str() {
            return Err(Error::Failed(why.to_owned()));
        }
        let causes = report["faults"]["causes"].as_array();
        let faults = causes.into_iter().flatten().map(Fault::new).collect();
        let of = |key: &str| report["leaks"][key].as_u64().unwrap_or_default();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(Self {
            status: output.status,
            stdout: text(output.stdout),
            stderr: text(output.stderr),
            faults,
            leaks: of("mappings").saturating_add(of("standing")),
            report,
        })
    }
}

impl Fault {
    fn new(cause: &Value) -> Self {
        let text = |key: &str| cause[key].as_str().unwrap_or_default().to_owned();
        let iova = text("first");
        let digits = iova.strip_prefix("0x").unwrap_or(&iova);
        Self {
            device: text("device"),
            model: text("model"),
            access: text("access"),
            iova: u64::from_str_radix(digits, 16).unwrap_or_default(),
            reason: text("reason"),
            times: cause["times"].as_u64().unwrap_or_default(),
            text: text("text"),
        }
    }
}
