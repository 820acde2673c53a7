//! `iogate doctor`: tries each thing that `iogate run` needs of this machine.

use std::fmt::Write as _;
use std::io::Write;
use std::process::ExitCode;

pub(crate) fn run() -> ExitCode {
    let steps = iogate_supervisor::doctor();
    let mut text = String::new();
    for step in &steps {
        let _ = match &step.result {
            Ok(()) => writeln!(text, "ok       {}", step.name),
            Err(problem) => writeln!(
                text,
                "MISSING  {}: {}\n         remedy: {}",
                step.name, problem.what, problem.remedy
            ),
        };
    }
    let works = steps.iter().all(|step| step.result.is_ok());
    text.push_str(if works {
        "iogate run works here\n"
    } else {
        "iogate run does not work here\n"
    });
    // A closed pipe is the reader's choice.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
    ExitCode::from(u8::from(!works))
}
