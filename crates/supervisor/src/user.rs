//! The user that a program is to run as, if it is not the one who runs us.

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::guardian::Failed;

/// A user of this machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct User {
    name: String,
    id: u32,
    group: u32,
    /// All of its groups, its own among them.
    groups: Vec<u32>,
    home: PathBuf,
    shell: PathBuf,
}

/// Why there is no such user to become.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// Only root can become another user.
    #[error("only root can run a program as another user")]
    NotRoot,
    /// Nobody has this name.
    #[error("there is no user {0}")]
    Unknown(String),
    /// The user database cannot be asked.
    #[error("cannot look up user {name}: {source}")]
    Database {
        /// The name.
        name: String,
        /// Why.
        source: io::Error,
    },
}

impl User {
    /// The user with this name. Call it from a process with one thread.
    ///
    /// # Errors
    /// [`UserError`].
    pub fn find(name: &str) -> Result<Self, UserError> {
        if !rustix::process::geteuid().is_root() {
            return Err(UserError::NotRoot);
        }
        Self::named(name)
    }

    fn named(name: &str) -> Result<Self, UserError> {
        let unknown = || UserError::Unknown(name.to_owned());
        let text = CString::new(name).map_err(|_| unknown())?;
        // SAFETY: the name is a C string, and the errno is this thread's.
        let entry = unsafe {
            *libc::__errno_location() = 0;
            libc::getpwnam(text.as_ptr())
        };
        if entry.is_null() {
            let source = io::Error::last_os_error();
            return Err(match source.raw_os_error() {
                // What getpwnam(3) gives for a name that is not there.
                Some(0 | libc::ENOENT | libc::ESRCH | libc::EBADF | libc::EPERM) | None => {
                    unknown()
                }
                _ => UserError::Database {
                    name: name.to_owned(),
                    source,
                },
            });
        }
        // SAFETY: the entry is the library's until the next question; its
        // strings are C strings.
        let (id, group, home, shell) = unsafe {
            let entry = &*entry;
            let text = |text: *const libc::c_char| match text.is_null() {
                true => PathBuf::from("/"),
                false => PathBuf::from(OsStr::from_bytes(CStr::from_ptr(text).to_bytes())),
            };
            (
                entry.pw_uid,
                entry.pw_gid,
                text(entry.pw_dir),
                text(entry.pw_shell),
            )
        };
        Ok(Self {
            name: name.to_owned(),
            id,
            group,
            groups: groups(&text, group),
            home,
            shell,
        })
    }

    /// Makes this process the user: its groups, its ids, its environment. What
    /// it is allowed beyond that goes. Call it from a process with one thread.
    pub(crate) fn become_it(&self) -> Result<(), Failed> {
        let done = |result: i32| match result {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        };
        let become_it = || {
            // SAFETY: the groups are as many as is said; the rest are plain
            // numbers.
            unsafe {
                done(libc::setgroups(self.groups.len(), self.groups.as_ptr()))?;
                done(libc::setresgid(self.group, self.group, self.group))?;
                done(libc::setresuid(self.id, self.id, self.id))?;
                // Who has changed its user is closed to others of its user
                // otherwise, and this process is nothing but the user's.
                done(libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0))
            }
        };
        become_it().map_err(Failed::at(format!("become user {}", self.name)))?;
        for (variable, value) in [
            ("HOME", self.home.as_os_str()),
            ("SHELL", self.shell.as_os_str()),
            ("USER", OsStr::new(&self.name)),
            ("LOGNAME", OsStr::new(&self.name)),
        ] {
            // SAFETY: this process has one thread.
            unsafe { std::env::set_var(variable, value) };
        }
        Ok(())
    }

    /// Does `make` on this thread with the user's rights to files: what it
    /// makes is the user's. setfsuid(2).
    pub fn owning<T>(&self, make: impl FnOnce() -> T) -> T {
        // SAFETY: these take plain numbers, and change nothing but this thread.
        let before = unsafe { (libc::setfsgid(self.group), libc::setfsuid(self.id)) };
        let made = make();
        let number = |id: i32| id.cast_unsigned();
        // SAFETY: as above.
        unsafe {
            (
                libc::setfsuid(number(before.1)),
                libc::setfsgid(number(before.0)),
            )
        };
        made
    }

    /// User and group id.
    pub(crate) fn ids(&self) -> (u32, u32) {
        (self.id, self.group)
    }
}

/// The groups of a user. getgrouplist(3).
fn groups(name: &CStr, own: u32) -> Vec<u32> {
    let mut groups = vec![0; 64];
    loop {
        let mut count = i32::try_from(groups.len()).unwrap_or(i32::MAX);
        // SAFETY: there is room for as many as is said.
        let found =
            unsafe { libc::getgrouplist(name.as_ptr(), own, groups.as_mut_ptr(), &raw mut count) };
        let count = usize::try_from(count).unwrap_or_default();
        if found >= 0 || count <= groups.len() {
            groups.truncate(count);
            return groups;
        }
        groups.resize(count, 0);
    }
}

/// Whether this process may look into processes of other users.
pub(crate) fn may_trace_others() -> bool {
    const SYS_PTRACE: u64 = 1 << 19;
    let status = std::fs::read_to_string(Path::new("/proc/self/status")).unwrap_or_default();
    crate::thread::Status::parse(&status)
        .is_some_and(|status| status.capabilities & SYS_PTRACE != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_its_ids_and_its_home() {
        let root = User::named("root").unwrap();
        assert_eq!((root.id, root.group), (0, 0));
        assert!(root.groups.contains(&0) && root.home.is_absolute());
    }

    #[test]
    fn an_unknown_name_is_said() {
        for name in ["no-such-user-here", "", "a\0b"] {
            assert!(matches!(User::named(name), Err(UserError::Unknown(_))));
        }
    }
}
