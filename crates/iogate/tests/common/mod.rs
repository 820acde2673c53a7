//! Runs the `iogate` that was built with the tests.
#![allow(dead_code, missing_docs, unreachable_pub)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

pub fn document(name: &str) -> String {
    fs::read_to_string(root().join("docs").join(name)).unwrap()
}

pub fn iogate(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_iogate"));
    command.args(arguments).output().unwrap()
}

/// A name in the folder of this test's files.
pub fn scratch(name: &str) -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let folder = format!("{}-{number}", std::process::id());
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(folder);
    fs::create_dir_all(&folder).unwrap();
    folder.join(name)
}

pub struct Ended {
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
    pub report: Value,
}

/// `iogate run OPTIONS -- PROGRAM`, with its report.
pub fn run(options: &[&str], program: &[&str]) -> Ended {
    let report = scratch("report.json");
    let name = report.to_str().unwrap();
    let output = iogate(&[&["run", "--report", name], options, &["--"], program].concat());
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let stderr = text(output.stderr);
    let report = fs::read_to_string(report).unwrap_or_else(|error| panic!("{error}: {stderr}"));
    Ended {
        status: output.status.code().unwrap(),
        stdout: text(output.stdout),
        stderr,
        report: serde_json::from_str(&report).unwrap(),
    }
}
