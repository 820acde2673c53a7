//! The `iogate` command: `run`, `serve`, `probe`, `machine`, `doctor`.
#![forbid(unsafe_code)]

mod doctor;
mod machine;
mod probe;
mod run;
mod serve;
mod session;
mod stacks;
mod trace;
mod watched;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// iogate's own failure; exit statuses up to 124 belong to the program.
const OWN_FAILURE: u8 = 125;

/// PCI device assignment in user space: VFIO and iommufd programs run against
/// software devices, without hardware, root or kernel modules.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a VFIO or iommufd program against software devices
    Run(Box<run::Options>),
    /// Give a virtual machine software devices, and IOMMUs before them
    Serve(Box<serve::Options>),
    /// Show what device assignment finds on this machine or in this session
    Probe(probe::Options),
    /// Check a machine file and print what results from it
    Machine(machine::Options),
    /// Try each thing that `iogate run` needs of this machine
    Doctor,
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version go to standard output and are no failure.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { OWN_FAILURE } else { 0 });
        }
    };
    match cli.command {
        Command::Run(options) => run::run(&options),
        Command::Serve(options) => serve::run(&options),
        Command::Probe(options) => probe::run(&options),
        Command::Machine(options) => machine::run(&options),
        Command::Doctor => doctor::run(),
    }
}
