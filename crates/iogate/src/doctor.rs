//! `iogate doctor`: tries each thing that `iogate run` needs of this machine.

use std::fmt::Write as _;
use std::io::Write;
use std::process::ExitCode;

use iogate_supervisor::Need;

pub(crate) fn run() -> ExitCode {
    let steps = iogate_supervisor::doctor();
    let mut text = String::new();
    for step in &steps {
        let name = step.name;
        let _ = match &step.result {
            Ok(way) => {
                let _ = writeln!(text, "ok       {name}: {}", way.how);
                way.not_better.iter().try_for_each(|problem| {
                    writeln!(
                        text,
                        "         since: {}\n         remedy: {}",
                        problem.what, problem.remedy
                    )
                })
            }
            Err(problem) => {
                let word = match step.need {
                    Need::Always => "MISSING ",
                    Need::IfAsked => "without ",
                };
                writeln!(
                    text,
                    "{word} {name}: {}\n         remedy: {}",
                    problem.what, problem.remedy
                )
            }
        };
    }
    let mut needed = steps.iter().filter(|step| step.need == Need::Always);
    let works = needed.all(|step| step.result.is_ok());
    text.push_str(if works {
        "iogate run works here\n"
    } else {
        "iogate run does not work here\n"
    });
    // A closed pipe is the reader's choice.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
    ExitCode::from(u8::from(!works))
}
