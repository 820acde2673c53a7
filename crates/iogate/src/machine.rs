//! `iogate machine`: checks a machine file and prints what results.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::{OWN_FAILURE, session};

/// What the command line asks for.
#[derive(clap::Args, Debug)]
pub(crate) struct Options {
    /// Add a device, as `iogate run --device` does; `help` lists the models
    #[arg(long = "device", value_name = "MODEL[,key=value]...")]
    devices: Vec<String>,
    /// The machine file; without it, the default machine
    file: Option<PathBuf>,
}

pub(crate) fn run(options: &Options) -> ExitCode {
    let mut out = std::io::stdout().lock();
    if options.devices.iter().any(|device| device == "help") {
        // A closed pipe is the reader's choice.
        let _ = out.write_all(session::models_help().as_bytes());
        return ExitCode::SUCCESS;
    }
    // Devices are built as well: what a model refuses is found here.
    let checked = session::load(options.file.as_deref(), &options.devices).and_then(|machine| {
        let memory = session::client_memory()?;
        session::build_devices(&machine, None, &memory).map(|_| machine)
    });
    match checked {
        Ok(machine) => {
            let _ = out.write_all(machine.describe().as_bytes());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(OWN_FAILURE)
        }
    }
}
