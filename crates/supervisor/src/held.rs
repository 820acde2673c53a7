//! Which files the client holds, and by what.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iogate_host::{FileId, Node};
use iogate_memory::Vma;

use crate::object::{Lock, Proof};
use crate::thread::Inode;

/// One thing of the client's that names a file of ours.
struct End {
    file: FileId,
    inode: Inode,
    proof: Proof,
}

/// A file: how many ends it has, and what its descriptors were before.
struct File {
    ends: usize,
    placeholder: Option<(Node, OwnedFd)>,
}

/// The files of devices that the client holds or has mapped. Locked by itself,
/// since it is asked while the host is locked and [`Held`] asks the host.
#[derive(Default)]
pub(crate) struct DeviceFiles(Mutex<HashSet<Inode>>);

impl DeviceFiles {
    fn lock(&self) -> MutexGuard<'_, HashSet<Inode>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether `vma` is a mapping of one.
    pub(crate) fn contains(&self, vma: &Vma) -> bool {
        self.lock().contains(&Inode::new(vma.device, vma.inode))
    }
}

/// All files and their ends.
#[derive(Default)]
pub(crate) struct Held {
    /// The ends of each inode.
    by_inode: HashMap<Inode, Vec<u64>>,
    ends: HashMap<u64, End>,
    files: HashMap<FileId, File>,
    devices: Arc<DeviceFiles>,
    next: u64,
}

impl Held {
    /// The files that the client reaches by `inode`: more than one only if
    /// they are of one device with plain memory.
    pub(crate) fn files(&self, inode: Inode) -> impl Iterator<Item = FileId> {
        let ends = self.by_inode.get(&inode).into_iter().flatten();
        ends.filter_map(|end| Some(self.ends.get(end)?.file))
    }

    /// The file that the client's open file `open`, of `inode`, is.
    pub(crate) fn file(&self, inode: Inode, open: impl AsFd) -> Option<FileId> {
        self.file_by(inode, |lock| lock.is_of(&open))
    }

    /// The file that the client's open file of `inode` is, which has a lock on
    /// this byte of it.
    pub(crate) fn file_locking(
        &self,
        inode: Inode,
        byte: impl Fn() -> Option<i64>,
    ) -> Option<FileId> {
        self.file_by(inode, |lock| byte() == Some(lock.byte))
    }

    fn file_by(&self, inode: Inode, is_own: impl Fn(&Lock) -> bool) -> Option<FileId> {
        let ends = self.by_inode.get(&inode)?;
        let mut ends = ends.iter().filter_map(|end| self.ends.get(end));
        let first = ends.next()?;
        let mut rest = ends.filter(|end| end.file != first.file).peekable();
        if rest.peek().is_none() {
            return Some(first.file);
        }
        let mut all = std::iter::once(first).chain(rest);
        let own = all.find(|end| match &end.proof {
            Proof::Lock(lock) => is_own(lock),
            Proof::Peer(_) => true,
        });
        own.map(|end| end.file)
    }

    /// The files of devices, as they stand at any time.
    pub(crate) fn devices(&self) -> Arc<DeviceFiles> {
        Arc::clone(&self.devices)
    }

    /// The number that the next end will have.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// Enters an end of `file`, and returns its number.
    pub(crate) fn add(&mut self, file: FileId, inode: Inode, proof: Proof) -> u64 {
        let end = self.next;
        self.next = self.next.wrapping_add(1);
        self.by_inode.entry(inode).or_default().push(end);
        if let Proof::Lock(_) = proof {
            self.devices.lock().insert(inode);
        }
        self.ends.insert(end, End { file, inode, proof });
        let entry = self.files.entry(file).or_insert(File {
            ends: 0,
            placeholder: None,
        });
        entry.ends = entry.ends.saturating_add(1);
        end
    }

    /// Remembers the open file that `file` took the place of.
    pub(crate) fn set_placeholder(&mut self, file: FileId, node: Node, placeholder: OwnedFd) {
        if let Some(entry) = self.files.get_mut(&file) {
            entry.placeholder = Some((node, placeholder));
        }
    }

    /// The file that took the place of the open file `placeholder`.
    pub(crate) fn instead_of(&self, node: Node, placeholder: impl AsFd) -> Option<FileId> {
        let placeholder = placeholder.as_fd();
        let found = self.files.iter().find(|(_, file)| {
            file.placeholder
                .as_ref()
                .is_some_and(|(of, file)| *of == node && is_same_open_file(file, placeholder))
        });
        found.map(|(file, _)| *file)
    }

    /// By what it is seen whether end `end` is let go of.
    pub(crate) fn peer(&self, end: u64) -> Option<&OwnedFd> {
        match &self.ends.get(&end)?.proof {
            Proof::Peer(peer) => Some(peer),
            Proof::Lock(_) => None,
        }
    }

    /// The memory file of a device.
    pub(crate) fn memory_of(&self, file: FileId) -> Option<Arc<OwnedFd>> {
        self.ends.values().find_map(|end| match &end.proof {
            Proof::Lock(lock) if end.file == file => Some(Arc::clone(&lock.file)),
            _ => None,
        })
    }

    /// The ends that are let go of.
    pub(crate) fn released(&self) -> Vec<u64> {
        let ends = self.ends.iter();
        let released = ends.filter(|(_, end)| end.proof.is_released());
        released.map(|(number, _)| *number).collect()
    }

    /// Whether end `end` is let go of; `false` if it is known no more.
    pub(crate) fn is_released(&self, end: u64) -> bool {
        self.ends
            .get(&end)
            .is_some_and(|end| end.proof.is_released())
    }

    /// Forgets an end. Returns its file if that was the last.
    pub(crate) fn remove(&mut self, end: u64) -> Option<FileId> {
        let End { file, inode, .. } = self.ends.remove(&end)?;
        if let Some(ends) = self.by_inode.get_mut(&inode) {
            ends.retain(|other| *other != end);
            if ends.is_empty() {
                self.by_inode.remove(&inode);
                self.devices.lock().remove(&inode);
            }
        }
        let entry = self.files.get_mut(&file)?;
        entry.ends = entry.ends.saturating_sub(1);
        if entry.ends > 0 {
            return None;
        }
        self.files.remove(&file);
        Some(file)
    }

    /// How many ends there are.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }
}

/// Whether two descriptors of ours share one open file: F_DUPFD_QUERY of
/// fcntl(2) (Linux 6.10), or kcmp(2), which container engines forbid. Where
/// both are missing they count as different.
fn is_same_open_file(one: impl AsFd, other: impl AsFd) -> bool {
    use std::os::fd::AsRawFd;
    const FILE: i32 = 0;
    const DUPFD_QUERY: i32 = 1027;
    let (first, second) = (one.as_fd().as_raw_fd(), other.as_fd().as_raw_fd());
    // SAFETY: this command takes a plain number.
    match unsafe { libc::fcntl(first, DUPFD_QUERY, second) } {
        0 => return false,
        1 => return true,
        _ => {}
    }
    let own = std::process::id();
    // SAFETY: the arguments of kcmp are plain numbers.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, own, own, FILE, first, second) };
    order == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::{another_device, make_device, make_socket};

    #[test]
    fn a_file_ends_with_its_last_end() {
        let mut held = Held::default();
        let (one, other) = (make_socket().unwrap(), make_socket().unwrap());
        let first = held.add(FileId(1), one.inode, one.proof);
        let second = held.add(FileId(1), other.inode, other.proof);
        assert_eq!(held.released(), []);
        drop(one.theirs);
        assert_eq!(held.released(), [first]);
        assert_eq!(held.remove(first), None);
        assert_eq!(held.remove(first), None);
        assert_eq!(held.file(other.inode, &other.theirs), Some(FileId(1)));
        drop(other.theirs);
        assert_eq!(held.remove(second), Some(FileId(1)));
        assert_eq!((held.files(other.inode).count(), held.len()), (0, 0));
    }

    #[test]
    fn a_placeholder_is_recognised_by_its_duplicates_only() {
        let mut held = Held::default();
        let made = make_device(None, 0).unwrap();
        held.add(FileId(3), made.inode, made.proof);
        let open = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
        let placeholder = open();
        let copy = placeholder.try_clone().unwrap();
        held.set_placeholder(FileId(3), Node::Device(0), placeholder);
        assert_eq!(held.instead_of(Node::Device(0), &copy), Some(FileId(3)));
        assert_eq!(held.instead_of(Node::Device(1), &copy), None);
        assert_eq!(held.instead_of(Node::Device(0), open()), None);
    }

    #[test]
    fn two_files_of_one_memory_are_told_apart_by_their_locks() {
        let mut held = Held::default();
        let one = make_device(None, 0).unwrap();
        let Proof::Lock(lock) = &one.proof else {
            panic!("a device has a lock");
        };
        let other = another_device(&lock.file, 1).unwrap();
        let inode = one.inode;
        let first = held.add(FileId(1), inode, one.proof);
        let second = held.add(FileId(2), other.inode, other.proof);
        let devices = held.devices();
        assert_eq!(held.file(inode, &one.theirs), Some(FileId(1)));
        assert_eq!(held.file(inode, &other.theirs), Some(FileId(2)));
        drop(other.theirs);
        assert_eq!(held.released(), [second]);
        assert_eq!(held.remove(second), Some(FileId(2)));
        assert_eq!(held.file(inode, &one.theirs), Some(FileId(1)));
        assert!(devices.lock().contains(&inode));
        assert_eq!(held.remove(first), Some(FileId(1)));
        assert!(!devices.lock().contains(&inode));
    }
}
