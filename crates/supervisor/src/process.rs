//! Processes by their numbers: who descends from us, and how to end them all.

use std::io;
use std::time::{Duration, Instant};

/// A process as a person knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Straggler {
    /// Process id.
    pub process: u32,
    /// The name of its main thread (comm), at most 15 bytes.
    pub name: String,
}

struct Entry {
    process: i32,
    parent: i32,
    name: String,
    is_zombie: bool,
}

/// All processes of this pid namespace that we may see.
fn all() -> Vec<Entry> {
    let Ok(directory) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    directory
        .flatten()
        .filter_map(|entry| {
            let process = entry.file_name().to_str()?.parse().ok()?;
            let stat = std::fs::read(entry.path().join("stat")).ok()?;
            let stat = String::from_utf8_lossy(&stat).into_owned();
            // The name stands in parentheses and may itself hold some.
            let (before, after) = stat.rsplit_once(')')?;
            let (_, name) = before.split_once('(')?;
            let mut fields = after.split_ascii_whitespace();
            let state = fields.next()?;
            Some(Entry {
                process,
                parent: fields.next()?.parse().ok()?,
                name: name.to_owned(),
                is_zombie: state == "Z" || state == "X",
            })
        })
        .collect()
}

/// The living descendants of `ancestor`, itself excluded.
pub(crate) fn descendants(ancestor: u32) -> Vec<Straggler> {
    let all = all();
    let Ok(ancestor) = i32::try_from(ancestor) else {
        return Vec::new();
    };
    let mut found: Vec<&Entry> = Vec::new();
    let mut parents = vec![ancestor];
    while let Some(parent) = parents.pop() {
        for entry in all.iter().filter(|entry| entry.parent == parent) {
            if !found.iter().any(|known| known.process == entry.process) {
                parents.push(entry.process);
                found.push(entry);
            }
        }
    }
    found
        .into_iter()
        .filter(|entry| !entry.is_zombie)
        .filter_map(|entry| {
            Some(Straggler {
                process: u32::try_from(entry.process).ok()?,
                name: entry.name.clone(),
            })
        })
        .collect()
}

/// Sends `signal` to `process`; `false` if it cannot be reached.
pub(crate) fn signal(process: u32, signal: i32) -> bool {
    match i32::try_from(process) {
        // SAFETY: kill takes plain numbers.
        Ok(process) if process > 0 => unsafe { libc::kill(process, signal) == 0 },
        _ => false,
    }
}

/// Waits for a child of this thread that has ended, without blocking if
/// `options` has WNOHANG. Returns its id, 0 if none has ended yet, and its
/// status. Tasks that another thread traces are that thread's.
pub(crate) fn reap(options: i32) -> io::Result<(u32, i32)> {
    let mut status = 0;
    // SAFETY: the status is written to a local integer.
    let child = unsafe { libc::waitpid(-1, &raw mut status, options | libc::__WNOTHREAD) };
    match u32::try_from(child) {
        Ok(child) => Ok((child, status)),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

/// Kills every descendant of this process, a child subreaper, and reaps them
/// until none is left or `patience` is over.
pub(crate) fn end_all(patience: Duration) {
    let start = Instant::now();
    let own = std::process::id();
    while start.elapsed() < patience {
        // Whoever is killed leaves its children to us, so that what was
        // started meanwhile is found in the next round.
        for straggler in descendants(own) {
            signal(straggler.process, libc::SIGKILL);
        }
        loop {
            match reap(libc::WNOHANG) {
                Ok((0, _)) => break,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_a_descendant_and_is_known_by_name() {
        let mut child = std::process::Command::new("sleep")
            .arg("9")
            .spawn()
            .unwrap();
        let found = descendants(std::process::id());
        assert!(found.iter().any(|s| s.process == child.id()));
        assert!(signal(child.id(), libc::SIGKILL));
        child.wait().unwrap();
    }
}
