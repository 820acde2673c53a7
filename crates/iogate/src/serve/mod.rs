//! `iogate serve`: a virtual machine's devices, and the units that they are
//! behind, each on a vfio-user socket.

mod directory;
mod faults;
mod interrupts;
mod machine;
mod plan;
mod qemu;
mod ram;
mod remote;
mod seat;
mod served;
mod table;
mod unit;
mod vm;
mod worker;

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use iogate_supervisor::{Caught, HeldSignals};

use self::directory::Directory;
use self::machine::Running;
use self::plan::Plan;
use self::qemu::User;
use crate::OWN_FAILURE;
use crate::session::{self, Refusal};
use crate::trace;

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
    /// Where the sockets are; without it, in a private directory that is removed
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Where the guest's firmware puts the units' registers, one address each in
    /// the order of the file: then nothing is started to find out
    #[arg(long = "bar", value_name = "ADDRESS", value_parser = address)]
    bars: Vec<u64>,
    /// Print events whose name matches this glob; `help` lists them
    #[arg(long = "trace", value_name = "PATTERN")]
    traces: Vec<String>,
    /// Print events there instead of to standard error; *.jsonl gets JSON
    #[arg(long, value_name = "FILE")]
    trace_file: Option<PathBuf>,
    /// QEMU and its arguments
    #[arg(last = true, value_name = "QEMU [ARGS]")]
    program: Vec<OsString>,
}

/// An address of a page, hexadecimal with 0x.
fn address(text: &str) -> Result<u64, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let address = u64::from_str_radix(digits, 16);
    let page = address
        .ok()
        .filter(|at| *at != 0 && at.is_multiple_of(4096));
    page.ok_or_else(|| "an address is hexadecimal, a multiple of 0x1000".to_owned())
}

pub(crate) fn run(options: &Options) -> ExitCode {
    if options.traces.iter().any(|pattern| pattern == "help") {
        return print(trace::EVENTS);
    }
    if options.devices.iter().any(|device| device == "help") {
        return print(&session::models_help());
    }
    match serve(options) {
        Ok(code) => code,
        Err(refusal) => {
            eprintln!("iogate: {refusal}");
            ExitCode::from(OWN_FAILURE)
        }
    }
}

fn print(text: &str) -> ExitCode {
    // A closed pipe is the reader's choice.
    let _ = io::stdout().lock().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

fn serve(options: &Options) -> Result<ExitCode, Refusal> {
    if options.trace_file.is_some() && options.traces.is_empty() {
        return Err(Refusal("--trace-file needs --trace PATTERN".to_owned()));
    }
    let mut patterns = options.traces.iter();
    if let Some(pattern) = patterns.find(|pattern| !trace::exists(pattern)) {
        let what = "--trace help lists them";
        return Err(Refusal(format!(
            "no trace event matches `{pattern}`; {what}"
        )));
    }
    let user = match options.program.split_first() {
        Some((program, words)) => {
            let user = User::new(words);
            user.check()?;
            qemu::check(program)?;
            Some((program, user))
        }
        None => None,
    };
    let held = HeldSignals::new();
    let held = held.map_err(|error| Refusal(format!("cannot hold signals: {error}")))?;
    trace::start(&options.traces, options.trace_file.as_deref(), None)
        .map_err(|error| Refusal(format!("cannot write the trace: {error}")))?;
    let machine = session::load(options.machine.as_deref(), &options.devices)?;
    let plan = Plan::new(&machine)?;
    let (given, wanted) = (options.bars.len(), plan.units.len());
    if given != 0 && given != wanted {
        return Err(Refusal(format!(
            "--bar is given {given} times, the machine has {wanted} units"
        )));
    }
    let directory = Directory::new(options.dir.as_deref())?;
    let running = Running::start(&machine, plan, directory.path())?;
    let ended = match user {
        Some((program, user)) => {
            vm::run(&held, &running, &directory, program, &user, &options.bars)
        }
        None => wait(&held, &running, &directory, &options.bars),
    };
    running.stop();
    let ended = ended?;
    drop((running, directory));
    Ok(match ended {
        vm::Ended::Exited(code) => ExitCode::from(code),
        vm::Ended::Signalled(signal) => iogate_supervisor::die_of(signal),
    })
}

/// Serves whoever connects, until a signal ends it.
fn wait(
    held: &HeldSignals,
    running: &Running,
    directory: &Directory,
    bars: &[u64],
) -> Result<vm::Ended, Refusal> {
    let none = User::new(&[]);
    let mut arguments = qemu::additions(&none, running)?;
    let mut told = vec![None; running.units().count()];
    if !told.is_empty() {
        // Until it is known where the units stand: QEMU wants a table to be
        // there.
        let nowhere = vec![0; told.len()];
        let bases = if bars.is_empty() { &nowhere } else { bars };
        directory.write_table(&table::table(&running.plan, bases).map_err(refused)?)?;
        for (told, bar) in told.iter_mut().zip(bars) {
            *told = Some(*bar);
        }
        arguments.extend(qemu::table(&directory.table())?);
    }
    let mut out = io::stdout().lock();
    let written = writeln!(out, "{}\nready", qemu::quoted(&arguments)).and_then(|()| out.flush());
    drop(out);
    written.map_err(|error| Refusal(format!("cannot write the arguments: {error}")))?;
    loop {
        match held.wait(Duration::from_millis(200)) {
            Caught::Other => vm::watch(running, directory, &mut told)?,
            Caught::Sent(signal) | Caught::Typed(signal) => {
                return Ok(vm::Ended::Signalled(signal));
            }
        }
    }
}

fn refused(error: impl std::fmt::Display) -> Refusal {
    Refusal(format!("cannot make the ACPI table: {error}"))
}
