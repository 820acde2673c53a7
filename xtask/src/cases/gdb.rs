//! The guide's example of a debugger, with gdb from the distribution's packages.

use std::path::Path;

use super::{Case, Tier};
use crate::apt::GDB;
use crate::place::Person;
use crate::process::{Ended, Job};
use crate::setup::Bench;
use crate::verdict::Stop;

/// How the guide begins the example.
const EXAMPLE: &str = "iogate run -- gdb ";

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for person in Person::ALL {
        cases.push(Case::new(
            Tier::Guests,
            format!("gdb/trap/{person}"),
            move |bench, log| {
                let ended = debug(bench, log, person, &[])?;
                wants(
                    &ended,
                    "functions assignable, opened and driven, inside iogate run",
                )?;
                wants(&ended, "exited normally")
            },
        ));
        cases.push(Case::new(
            Tier::Guests,
            format!("gdb/map/{person}"),
            move |bench, log| {
                let ended = debug(bench, log, person, &["--device=edu,mmio=map"])?;
                wants(&ended, "run it with `mmio = \"trap\"`")
            },
        ));
    }
    cases
}

/// Runs the example, with options of `run`.
fn debug(bench: &Bench, log: &Path, person: Person, options: &[&str]) -> Result<Ended, Stop> {
    let guide = include_str!("../../../docs/guide.md");
    let mut lines = guide.lines();
    let words = lines.find_map(|line| line.strip_prefix(EXAMPLE));
    let words = words.ok_or_else(|| Stop::failed("the guide has no example of gdb"))?;
    let place = bench.place(person)?;
    let gdb = bench.packages(&GDB, &place)?;
    let mut command = place.command(&bench.iogate_of(&place)?);
    command.arg("run").args(options).arg("--");
    command.args(gdb.program("usr/bin/gdb"));
    // Its Python is of the packages too.
    command.env("PYTHONHOME", gdb.directory.join("usr"));
    command.args(words.split_whitespace());
    Job::new(command, log).user(place.user).limit(120).run()
}

fn wants(ended: &Ended, text: &str) -> Result<(), Stop> {
    match ended.log.contains(text) {
        true => Ok(()),
        false => Err(Stop::failed(format!("gdb's session does not say {text:?}"))),
    }
}
