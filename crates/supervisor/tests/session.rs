//! Sessions with real processes. This program is three: the list of cases, the
//! supervisor of one case (`run`), and the client in it (`client`).
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

#[path = "session/cases.rs"]
mod cases;
#[path = "session/client.rs"]
mod client;
#[path = "session/events.rs"]
mod events;
#[path = "session/numbers.rs"]
mod numbers;
#[path = "session/outside.rs"]
mod outside;
#[path = "session/world.rs"]
mod world;

use std::process::ExitCode;

use iogate_supervisor::{Status, run};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.get(1..).unwrap_or_default() {
        ["client", name] => {
            let (_, body) = cases::CLIENTS
                .iter()
                .find(|(known, _)| known == name)
                .unwrap();
            body();
            ExitCode::SUCCESS
        }
        ["run", program, arguments @ ..] => supervise(program, arguments),
        ["doctor"] => {
            for step in iogate_supervisor::doctor() {
                println!("{}: {:?}", step.name, step.result);
            }
            ExitCode::SUCCESS
        }
        filter => outside::run_all(filter),
    }
}

/// Runs a program in a session and ends as it has ended; a signal gives 200
/// and its number.
fn supervise(program: &str, arguments: &[&str]) -> ExitCode {
    let session = world::session(1, program, arguments);
    session.host.extend(std::sync::Arc::new(events::Asks));
    match run(session) {
        Ok(ended) => match ended.status {
            Status::Exited(code) => code.into(),
            Status::Signalled(signal) => u8::try_from(200 + signal).unwrap_or(u8::MAX).into(),
        },
        Err(error) => {
            eprintln!("iogate: {error}");
            error.exit_code().into()
        }
    }
}
