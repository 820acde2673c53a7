//! `iogate run`: a program against software devices.

use std::ffi::OsString;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use iogate_checker::Checker;
use iogate_inject::Injection;
use iogate_supervisor::{StartError, Status, Unmapping, User};
use iogate_sysfs::HostPci;
use serde_json::{Value, json};

use crate::OWN_FAILURE;
use crate::session::{self, Refusal, Session};
use crate::trace::{self, Timeline};

/// The program ended well, but `--fail-on` hit.
const CHECK_FAILED: u8 = 99;

/// What `--inject help` prints.
const INJECTIONS: &str = include_str!("../../../docs/inject.md");

/// What the command line asks for.
#[derive(clap::Args, Debug)]
pub(crate) struct Options {
    /// The machine file; without it, one edu and one nvme
    #[arg(long, value_name = "FILE")]
    machine: Option<PathBuf>,
    /// A device: takes the place of the default machine's, or adds to
    /// --machine; `help` lists the models
    #[arg(long = "device", value_name = "MODEL[,key=value]...")]
    devices: Vec<String>,
    /// Print events whose name matches this glob; `help` lists them
    #[arg(long = "trace", value_name = "PATTERN")]
    traces: Vec<String>,
    /// Print events there instead of to standard error; *.jsonl gets JSON
    #[arg(long, value_name = "FILE")]
    trace_file: Option<PathBuf>,
    /// Write all events over time, in the format of Chrome and Perfetto
    #[arg(long, value_name = "FILE")]
    timeline: Option<PathBuf>,
    /// Write what the checker found, as JSON (%p is the process id)
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Take call stacks of maps, unmaps and register writes for the reports;
    /// slow, see docs/report.md
    #[arg(long)]
    stacks: bool,
    /// End with status 99 if there were any and the program ended with 0
    #[arg(long, value_name = "WHAT")]
    fail_on: Vec<FailOn>,
    /// Have calls, DMA, interrupts or devices fail; `help` has the grammar
    #[arg(long = "inject", value_name = "RULES")]
    injections: Vec<String>,
    /// What rules with a percentage are decided by
    #[arg(long, value_name = "N", default_value_t = 1)]
    inject_seed: u64,
    /// Have /dev/iommu answer the kernel's test interface (IOMMU_TEST) too
    #[arg(long)]
    iommu_test: bool,
    /// Show the machine's own PCI devices and groups too
    #[arg(long)]
    host_pci: bool,
    /// Run the program as this user, who owns the session's files; for root
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Whether the program's munmap and the like are noticed
    #[arg(long, value_name = "SWITCH", default_value = "on")]
    unmap_watch: Switch,
    /// The program and its arguments
    #[arg(last = true, value_name = "PROGRAM [ARGS]")]
    program: Vec<OsString>,
}

#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum FailOn {
    /// Refused DMA
    Faults,
    /// Mappings that were never unmapped
    Leaks,
}

#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Switch {
    On,
    Off,
}

impl Options {
    /// Whether only a program is named.
    fn are_plain(&self) -> bool {
        self.machine.is_none()
            && self.devices.is_empty()
            && self.traces.is_empty()
            && self.trace_file.is_none()
            && self.timeline.is_none()
            && self.report.is_none()
            && !self.stacks
            && self.fail_on.is_empty()
            && self.injections.is_empty()
            && !self.iommu_test
            && !self.host_pci
            && self.user.is_none()
    }
}

pub(crate) fn run(options: &Options) -> ExitCode {
    // Help is the one thing that goes to standard output: no program runs.
    if options.traces.iter().any(|pattern| pattern == "help") {
        return print(trace::EVENTS);
    }
    if options.devices.iter().any(|device| device == "help") {
        return print(&session::models_help());
    }
    if options.injections.iter().any(|rules| rules == "help") {
        return print(INJECTIONS);
    }
    let Some((program, arguments)) = options.program.split_first() else {
        return refuse("no program is named: iogate run [OPTIONS] -- PROGRAM [ARGS]");
    };
    if iogate_supervisor::inside_session() {
        return match options.are_plain() {
            true => become_program(program, arguments),
            false => refuse("inside a session only `iogate run -- PROGRAM` without options works"),
        };
    }
    if options.trace_file.is_some() && options.traces.is_empty() {
        return refuse("--trace-file needs --trace PATTERN");
    }
    if let Some(pattern) = options
        .traces
        .iter()
        .find(|pattern| !trace::exists(pattern))
    {
        return refuse(format!(
            "no trace event matches `{pattern}`; --trace help lists them"
        ));
    }
    let files = (options.trace_file.as_deref(), options.timeline.as_deref());
    let user = options.user.as_deref().map(User::find).transpose();
    let user = match user {
        Ok(user) => user,
        Err(error) => return refuse(format!("--user: {error}")),
    };
    let start = || trace::start(&options.traces, files.0, files.1);
    let timeline = match owned_by(user.as_ref(), start) {
        Ok(timeline) => timeline,
        Err(error) => return refuse(format!("cannot write the trace: {error}")),
    };
    match supervise(options, user, program, arguments, timeline.as_deref()) {
        Ok(code) => code,
        Err(refusal) => refuse(refusal),
    }
}

fn print(text: &str) -> ExitCode {
    // A closed pipe is the reader's choice.
    let _ = io::stdout().lock().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

fn refuse(why: impl std::fmt::Display) -> ExitCode {
    eprintln!("iogate: {why}");
    ExitCode::from(OWN_FAILURE)
}

fn become_program(program: &OsString, arguments: &[OsString]) -> ExitCode {
    let error = Command::new(program).args(arguments).exec();
    eprintln!("iogate: {}: {error}", program.display());
    ExitCode::from(match error.kind() {
        io::ErrorKind::NotFound => 127,
        _ => 126,
    })
}

/// Does `make`: the files that it makes are the user's.
fn owned_by<T>(user: Option<&User>, make: impl FnOnce() -> T) -> T {
    match user {
        Some(user) => user.owning(make),
        None => make(),
    }
}

fn supervise(
    options: &Options,
    user: Option<User>,
    program: &OsString,
    arguments: &[OsString],
    timeline: Option<&Timeline>,
) -> Result<ExitCode, Refusal> {
    let machine = session::load(options.machine.as_deref(), &options.devices)?;
    let injection = session::injection(&machine, &options.injections, options.inject_seed)?;
    let session = Session::new(&machine, injection.as_ref(), options.stacks)?;
    if options.iommu_test {
        session.offer_test_interface();
    }
    let host_pci = match options.host_pci {
        true => HostPci::Shown,
        false => HostPci::Hidden,
    };
    let program = session::Command {
        name: program.clone(),
        arguments: arguments.to_vec(),
        user: user.clone(),
        unmapping: match options.unmap_watch {
            Switch::On => Unmapping::Noticed,
            Switch::Off => Unmapping::Unseen,
        },
    };
    let supervised = session.supervised(&machine, host_pci, program)?;
    if let Some(path) = &options.report {
        check_directory(path)?;
    }
    let ended = iogate_supervisor::run(supervised);
    if let Some(timeline) = timeline {
        timeline.finish();
    }
    let ended = match ended {
        Ok(ended) => ended,
        Err(error) => {
            eprintln!("iogate: {error}");
            if let StartError::Broken(why) = error {
                let status = json!({ "broken": why });
                write_report(
                    options,
                    user.as_ref(),
                    &session.checker,
                    injection.as_deref(),
                    status,
                    std::process::id(),
                )?;
            }
            return Ok(ExitCode::from(error.exit_code()));
        }
    };
    let status = match ended.status {
        Status::Exited(code) => json!({ "exited": code }),
        Status::Signalled(signal) => json!({ "signalled": signal }),
    };
    write_report(
        options,
        user.as_ref(),
        &session.checker,
        injection.as_deref(),
        status,
        ended.process,
    )?;
    let wrong = options.fail_on.iter().any(|what| match what {
        FailOn::Faults => session.checker.faults() > 0,
        FailOn::Leaks => session.checker.leaks() > 0,
    });
    Ok(match ended.status {
        Status::Signalled(signal) => iogate_supervisor::die_of(signal),
        Status::Exited(0) if wrong => ExitCode::from(CHECK_FAILED),
        Status::Exited(code) => ExitCode::from(code),
    })
}

/// The report goes beside its final place first: that has to be possible.
fn check_directory(path: &Path) -> Result<(), Refusal> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let found = std::fs::metadata(directory).and_then(|found| match found.is_dir() {
        true => Ok(()),
        false => Err(io::ErrorKind::NotADirectory.into()),
    });
    found.map_err(|error| cannot_write(path, &error))
}

fn cannot_write(path: &Path, error: &io::Error) -> Refusal {
    Refusal(format!(
        "cannot write the report {}: {error}",
        path.display()
    ))
}

/// Prints what the checker found, and writes it if a report is wanted.
fn write_report(
    options: &Options,
    user: Option<&User>,
    checker: &Checker,
    injection: Option<&Injection>,
    status: Value,
    process: u32,
) -> Result<(), Refusal> {
    let mut report = checker.finish();
    if let Some(injection) = injection {
        for line in injection.summary() {
            eprintln!("iogate: {line}");
        }
        report.set("injected", injection.report());
    }
    let words = options.program.iter().map(|word| word.to_string_lossy());
    report.set("program", json!(words.collect::<Vec<_>>()));
    report.set("process", json!(process));
    report.set("status", status);
    match &options.report {
        Some(path) => owned_by(user, || report.write(path, process))
            .map(drop)
            .map_err(|error| cannot_write(path, &error)),
        None => Ok(()),
    }
}
