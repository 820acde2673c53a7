//! What may become of a session of which a call failed.

use std::collections::BTreeMap;
use std::process::ExitCode;

use crate::calls::{ALLOCATING, NO_MEMORY, name};
use crate::trace::{NO_TRACE, Ran, run};

/// Runs a session for each of the calls that `choose` names among all.
pub fn check(choose: impl FnOnce(u64) -> Vec<u64>) -> ExitCode {
    let whole = run(None);
    if whole
        .status
        .is_some_and(|status| libc::WEXITSTATUS(status) == NO_TRACE)
    {
        println!("NOT RUN: ptrace is forbidden here (a call of the supervisor fails)");
        return ExitCode::SUCCESS;
    }
    assert_eq!(whole.status, Some(0), "{}", whole.err);
    println!("{} calls of the supervisor can fail", whole.total);
    let before = traces();
    let mut counts: BTreeMap<String, BTreeMap<&str, usize>> = BTreeMap::new();
    let mut bad = 0;
    for at in choose(whole.total) {
        let ran = run(Some(at));
        let Some(failed) = ran.failed else {
            continue;
        };
        let verdict = judge(&ran, failed);
        let verdict = match traces() == before {
            true => verdict,
            false => Err("something was left in the machine".to_owned()),
        };
        let outcome = match verdict {
            Ok(outcome) => outcome,
            Err(why) => {
                bad += 1;
                println!("FAILED  at {at}, {}: {why}\n{}", name(failed), ran.err);
                "bad"
            }
        };
        let outcomes = counts.entry(name(failed)).or_default();
        *outcomes.entry(outcome).or_default() += 1;
    }
    for (name, outcomes) in counts {
        println!("{name}: {outcomes:?}");
    }
    println!("{bad} failed");
    let _ = std::fs::remove_dir_all(crate::trace::directory());
    match bad {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

/// How a session ended, in a word, if it may end so.
fn judge(ran: &Ran, failed: i64) -> Result<&'static str, String> {
    let Some(status) = ran.status else {
        return Err("it did not end".to_owned());
    };
    if !ran.left.is_empty() {
        return Err(format!("left were {:?}", ran.left));
    }
    let said = |text: &str| ran.err.contains(text);
    if said("DEFECT") {
        return Err("something is broken".to_owned());
    }
    let no_memory = ALLOCATING.contains(&failed) && NO_MEMORY.iter().any(|word| said(word));
    if no_memory {
        return Ok("the library ended it for want of memory");
    }
    if libc::WIFSIGNALED(status) {
        return Err(format!("signal {}", libc::WTERMSIG(status)));
    }
    if said("panicked") {
        return Err("a panic".to_owned());
    }
    match libc::WEXITSTATUS(status) {
        0 if said("errno") => Ok("told to the program"),
        0 => Ok("not felt"),
        125 if said("iogate: ") => Ok("session ended with a word"),
        code => Err(format!("it ended with {code}")),
    }
}

/// What a session could leave: mounts, and files in a directory of its own.
fn traces() -> (usize, usize) {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let ours = mounts.lines().filter(|mount| mount.contains("iogate"));
    let files = std::fs::read_dir(crate::trace::directory()).unwrap();
    (ours.count(), files.count())
}
