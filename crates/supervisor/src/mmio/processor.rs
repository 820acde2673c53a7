//! On which processor the tracer runs: where the faulting thread does. A
//! wake-up across processors takes several times as long as an access.

use std::collections::HashMap;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::thread::CpuSet;

use super::trace::Task;

/// After so many accesses a thread is asked where it runs.
const OFTEN: u32 = 64;

/// Where the tracer is.
#[derive(Default)]
pub(crate) struct Follower {
    /// Accesses until one is asked again.
    left: u32,
    processor: Option<usize>,
    stats: HashMap<Task, OwnedFd>,
}

impl Follower {
    /// Goes where `task`, which is stopped, ran last. Not each time: asking
    /// takes as long as an access.
    pub(crate) fn follow(&mut self, task: Task) {
        if self.left > 0 {
            self.left = self.left.saturating_sub(1);
            return;
        }
        self.left = OFTEN;
        let Some(processor) = self.processor_of(task) else {
            return;
        };
        if self.processor == Some(processor) || processor >= CpuSet::MAX_CPU {
            return;
        }
        let mut set = CpuSet::new();
        set.set(processor);
        // Where that is not allowed, it is slower and no more.
        if rustix::thread::sched_setaffinity(None, &set).is_ok() {
            self.processor = Some(processor);
        }
    }

    /// Forgets a thread that has ended.
    pub(crate) fn forget(&mut self, task: Task) {
        self.stats.remove(&task);
    }

    fn processor_of(&mut self, task: Task) -> Option<usize> {
        let stat = match self.stats.entry(task) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let path = format!("/proc/{0}/task/{0}/stat", task.0);
                let flags = OFlags::RDONLY | OFlags::CLOEXEC;
                entry.insert(rustix::fs::open(path, flags, Mode::empty()).ok()?)
            }
        };
        let mut text = [0; 1024];
        let length = rustix::io::pread(&*stat, &mut text, 0).ok()?;
        processor(std::str::from_utf8(text.get(..length)?).ok()?)
    }
}

/// Field 39 of proc_pid_stat(5).
fn processor(stat: &str) -> Option<usize> {
    // The name, field 2, stands in parentheses and may hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(36)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_is_where_it_says() {
        let allowed = rustix::thread::sched_getaffinity(None).unwrap();
        let one = (0..CpuSet::MAX_CPU).rfind(|cpu| allowed.is_set(*cpu));
        let mut set = CpuSet::new();
        set.set(one.unwrap());
        rustix::thread::sched_setaffinity(None, &set).unwrap();
        let own = Task(rustix::thread::gettid().as_raw_pid());
        assert_eq!(Follower::default().processor_of(own), one);
        rustix::thread::sched_setaffinity(None, &allowed).unwrap();
    }

    #[test]
    fn a_name_may_look_like_fields() {
        let fields: Vec<String> = (4..60).map(|field| format!("{field}")).collect();
        let stat = format!("1 (a) R 2 ) b) S {}", fields.join(" "));
        assert_eq!(processor(&stat), Some(39));
    }
}
