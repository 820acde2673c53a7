//! Project tasks: `cargo xtask test` runs every tier of tests this machine can run;
//! `cargo xtask fuzz` and `cargo xtask miri` run the tools that need a nightly compiler.

mod apt;
mod cases;
mod environment;
mod guest;
mod huge_pages;
mod options;
mod place;
mod process;
mod progress;
#[allow(dead_code, reason = "programs of other packages use the rest of it")]
mod qtest;
mod runner;
mod setup;
mod site;
mod tools;
mod verdict;

use std::process::ExitCode;

const HELP: &str = "\
usage: cargo xtask test [--tier unit|clients|guests]... [--list] [--strict] [FILTER]
       cargo xtask fuzz [ARGS of `cargo fuzz`]
       cargo xtask miri [ARGS of `cargo miri test`]

test     runs what this machine can run and says NOT RUN, with the remedy, for the rest
  --tier T   only this tier; may be repeated
  --list     print the cases and exit
  --strict   NOT RUN is a failure too
  FILTER     only the cases whose name contains it
";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let task = arguments.next().unwrap_or_default();
    let rest: Vec<String> = arguments.collect();
    match task.as_str() {
        "test" => match options::Options::parse(&rest) {
            Ok(options) => runner::main(&options),
            Err(message) => {
                eprintln!("xtask: {message}\n\n{HELP}");
                ExitCode::from(2)
            }
        },
        "fuzz" => tools::fuzz(&rest),
        "miri" => tools::miri(&rest),
        "help" | "--help" | "-h" => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
        _ => {
            eprint!("{HELP}");
            ExitCode::from(2)
        }
    }
}
