//! `iogate probe`: what device assignment finds on this machine, the same on
//! real hardware as under `iogate run`.
//!
//! Only sysfs is read unless devices are opened on demand ([`open`]), and
//! nothing is driven unless asked for ([`exercise`]): on real hardware,
//! opening resets a function. Under `iogate run` all three are done.

mod exercise;
mod facts;
mod json;
mod open;
mod sysfs;
mod text;

use std::io::Write;
use std::process::ExitCode;

use iogate_dma::Source;

use facts::Facts;

/// What the command line asks for.
#[derive(clap::Args, Debug)]
pub(crate) struct Options {
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
    /// Open each device by group and by cdev (on real hardware this resets it)
    #[arg(long)]
    open: bool,
    /// Drive the devices that iogate knows: a DMA and an interrupt on edu,
    /// Identify on nvme (never a write); implies --open
    #[arg(long)]
    exercise: bool,
    /// Only these functions
    #[arg(value_name = "BDF")]
    functions: Vec<Source>,
}

pub(crate) fn run(options: &Options) -> ExitCode {
    let inside = iogate_supervisor::inside_session();
    let mut facts = match sysfs::read(&options.functions) {
        Ok(facts) => facts,
        Err(error) => {
            eprintln!("iogate probe: {error}");
            return ExitCode::from(125);
        }
    };
    facts.inside_session = inside;
    let exercise = options.exercise || inside;
    if options.open || exercise {
        if !inside {
            eprintln!("iogate probe: opening a device resets it");
        }
        open::all(&mut facts, exercise);
    }
    let text = if options.json {
        json::render(&facts)
    } else {
        text::render(&facts)
    };
    // A closed pipe is the reader's choice, not a problem of the devices.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
    verdict(&facts)
}

/// 0 if every function bound to a VFIO driver can be used as far as was
/// looked, else 1; 2 if there is none to judge.
fn verdict(facts: &Facts) -> ExitCode {
    let mut judged = facts
        .functions
        .iter()
        .filter(|f| f.is_assignable())
        .peekable();
    if judged.peek().is_none() {
        return ExitCode::from(2);
    }
    ExitCode::from(u8::from(judged.any(|f| !f.problems.is_empty())))
}
