//! What noticed path calls are answered with.

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use iogate_host::Node;
use iogate_uapi::{Client, Errno};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

use super::Paths;
use super::call::{Path, PathCall, Wanted, has};
use super::shown::Entry;
use super::walk::Found;
use crate::client::Calling;
use crate::core::errno;
use crate::listener::{Call, OnExec};

/// What a node is to a program: a mount of it where mounts can be made.
const NULL: &str = "/dev/null";

/// What becomes of a path call.
pub(crate) enum Answer {
    /// The kernel does it.
    Native,
    /// The caller sees this return value.
    Value(i64),
    /// The caller gets this file.
    File(OwnedFd, OnExec),
    /// The caller gets what opening this node gives.
    Node(Node, OnExec),
    /// The caller's working directory becomes this.
    Enter(OwnedFd),
}

use Answer::{Native, Value};

/// A file as our own calls name it.
struct At<'a> {
    directory: BorrowedFd<'a>,
    name: CString,
}

impl Paths {
    /// Answers `call`.
    pub(crate) fn answer(&self, client: &Calling<'_>, call: &Call) -> Result<Answer, Errno> {
        if call.number() == libc::SYS_getcwd {
            return self.current_directory(client, call);
        }
        let Some(call) = PathCall::of(call, |address| client.word(address)) else {
            return Ok(Native);
        };
        let path = match call.path {
            Path::None => return self.descriptor(client, &call),
            Path::AtOrNone(0) => return self.descriptor(client, &call),
            Path::At(address) | Path::AtOrNone(address) => client.path(address),
        };
        // What is no path gets its error from the kernel.
        let Some(path) = path else {
            return Ok(Native);
        };
        if path.is_empty() {
            return match call.path {
                Path::AtOrNone(_) => self.descriptor(client, &call),
                _ => Ok(Native),
            };
        }
        match self.find(client, call.directory, &path, call.last) {
            Found::Native => self.native(client, &call, &path),
            Found::Error(rustix::io::Errno::NOENT) if creates(call.wanted) => Err(Errno::EACCES),
            Found::Error(error) => Err(errno(error.into())),
            Found::Machine(path) => self.machine(client, &call, path),
            Found::Shown { path, straight } => self.shown(client, &call, &path, straight),
        }
    }

    /// What the kernel would do, but for the links in `/proc` that tell of the
    /// stage.
    fn native(&self, client: &Calling<'_>, call: &PathCall, path: &[u8]) -> Result<Answer, Errno> {
        let Wanted::Text { into, size } = call.wanted else {
            return Ok(Native);
        };
        let Some(rest) = path.strip_prefix(b"/proc/") else {
            return Ok(Native);
        };
        let (process, thread) = (client.process().id(), client.number());
        let mut link = b"/proc/".to_vec();
        match (
            rest.strip_prefix(b"self/"),
            rest.strip_prefix(b"thread-self/"),
        ) {
            (Some(rest), _) => {
                link.extend(format!("{process}/").bytes());
                link.extend_from_slice(rest);
            }
            (_, Some(rest)) => {
                link.extend(format!("{process}/task/{thread}/").bytes());
                link.extend_from_slice(rest);
            }
            _ => link.extend_from_slice(rest),
        }
        let text = rustix::fs::readlink(link, Vec::new()).map(CString::into_bytes);
        match text.as_deref().map(|text| self.off_stage(text)) {
            Ok(Some(path)) => text_into(client, path, into, size),
            _ => Ok(Native),
        }
    }

    fn current_directory(&self, client: &Calling<'_>, call: &Call) -> Result<Answer, Errno> {
        let Ok(link) = client.own_link("cwd") else {
            return Ok(Native);
        };
        let Some(path) = self.off_stage(&link) else {
            return Ok(Native);
        };
        let mut text = path.to_vec();
        text.push(0);
        let length = text.len() as u64;
        if call.argument(1) < length {
            return Err(Errno(libc::ERANGE));
        }
        client.write(call.argument(0), &text)?;
        Ok(Value(length.cast_signed()))
    }

    /// What is asked of a descriptor itself: one that was opened by a node is
    /// a character device.
    fn descriptor(&self, client: &Calling<'_>, call: &PathCall) -> Result<Answer, Errno> {
        if !matches!(call.wanted, Wanted::Stat { .. } | Wanted::Statx { .. }) {
            return Ok(Native);
        }
        match client.known(call.directory) {
            Some(file) if self.is_by_node(file) => ask(client, call.wanted, &null()),
            _ => Ok(Native),
        }
    }

    /// What the session shows at `path`.
    fn shown(
        &self,
        client: &Calling<'_>,
        call: &PathCall,
        path: &str,
        straight: bool,
    ) -> Result<Answer, Errno> {
        let shown = self.as_shown();
        let Some(entry) = shown.entry(path.as_bytes()) else {
            return Ok(Native);
        };
        let name = CString::new(path.trim_start_matches('/')).map_err(|_| Errno::ENOENT)?;
        let at = match entry {
            Entry::Node(_) => null(),
            _ => At {
                directory: self.root.as_fd(),
                name,
            },
        };
        match call.wanted {
            Wanted::Open { flags } => {
                if has(flags, libc::O_CREAT | libc::O_EXCL) {
                    return Err(Errno::EEXIST);
                }
                match entry {
                    Entry::Link { .. } if has(flags, libc::O_DIRECTORY) => {
                        Err(Errno(libc::ENOTDIR))
                    }
                    Entry::Link { .. } => Err(Errno(libc::ELOOP)),
                    Entry::Node(_) if has(flags, libc::O_DIRECTORY) => Err(Errno(libc::ENOTDIR)),
                    Entry::Node(node) if !has(flags, libc::O_PATH) => {
                        Ok(Answer::Node(*node, OnExec::from_flags(flags)))
                    }
                    _ => open(&at, flags),
                }
            }
            Wanted::Text { into, size } => match entry {
                Entry::Link { target } => text_into(client, target.as_bytes(), into, size),
                _ => Err(Errno::EINVAL),
            },
            Wanted::Enter => match entry {
                Entry::Directory { .. } if straight && std::path::Path::new(path).is_dir() => {
                    Ok(Native)
                }
                Entry::Directory { .. } => enter(&at),
                _ => Err(Errno(libc::ENOTDIR)),
            },
            Wanted::Attribute => Err(Errno(libc::ENODATA)),
            Wanted::Attributes => Ok(Value(0)),
            wanted => ask(client, wanted, &at),
        }
    }

    /// What the machine has at `path`, where the kernel would not get from
    /// where the caller is.
    fn machine(
        &self,
        client: &Calling<'_>,
        call: &PathCall,
        path: Vec<u8>,
    ) -> Result<Answer, Errno> {
        let at = At {
            directory: CWD,
            name: CString::new(path).map_err(|_| Errno::ENOENT)?,
        };
        match call.wanted {
            Wanted::Open { .. } | Wanted::Enter | Wanted::Access { .. }
                if !client.has_our_rights() =>
            {
                Err(Errno::EACCES)
            }
            Wanted::Open { flags } => {
                let kind = rustix::fs::lstat(&at.name).map_err(|error| errno(error.into()))?;
                match rustix::fs::FileType::from_raw_mode(kind.st_mode) {
                    rustix::fs::FileType::Directory | rustix::fs::FileType::RegularFile => {
                        open(&at, flags)
                    }
                    // Only the program itself may open it; it stands for itself
                    // on the stage.
                    _ => Ok(Native),
                }
            }
            Wanted::Enter => enter(&at),
            Wanted::Text { into, size } => {
                let text = rustix::fs::readlink(&at.name, Vec::new());
                let text = text.map_err(|error| errno(error.into()))?;
                text_into(client, text.as_bytes(), into, size)
            }
            Wanted::Attribute => Err(Errno(libc::ENODATA)),
            Wanted::Attributes => Ok(Value(0)),
            wanted => ask(client, wanted, &at),
        }
    }
}

fn null() -> At<'static> {
    At {
        directory: CWD,
        name: CString::new(NULL).unwrap_or_default(),
    }
}

fn creates(wanted: Wanted) -> bool {
    matches!(wanted, Wanted::Open { flags } if has(flags, libc::O_CREAT))
}

/// Opens what is no link. What is opened with O_PATH is opened for reading: an
/// O_PATH file cannot be handed over.
fn open(at: &At<'_>, flags: u64) -> Result<Answer, Errno> {
    const IGNORED: i32 = libc::O_CREAT | libc::O_EXCL | libc::O_PATH;
    if has(flags, libc::O_TMPFILE) {
        return Err(Errno(libc::EOPNOTSUPP));
    }
    let on_exec = OnExec::from_flags(flags);
    let kept = u32::try_from(flags & u64::from(u32::MAX)).unwrap_or_default();
    let kept = OFlags::from_bits_truncate(kept & !IGNORED.cast_unsigned());
    let open = |flags| {
        rustix::fs::openat2(
            at.directory,
            &at.name,
            flags | OFlags::CLOEXEC | OFlags::NOCTTY,
            Mode::empty(),
            ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
        )
    };
    let mut opened = open(kept);
    if has(flags, libc::O_PATH) && opened.is_err() {
        opened = open(kept | OFlags::WRONLY);
    }
    let file = opened.map_err(|error| errno(error.into()))?;
    Ok(Answer::File(file, on_exec))
}

fn enter(at: &At<'_>) -> Result<Answer, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(at.directory, &at.name, flags, Mode::empty());
    Ok(Answer::Enter(
        directory.map_err(|error| errno(error.into()))?,
    ))
}

/// Writes the text of a link, without its end if there is no room.
fn text_into(client: &Calling<'_>, text: &[u8], into: u64, size: i32) -> Result<Answer, Errno> {
    let size = usize::try_from(size).unwrap_or_default();
    if size == 0 {
        return Err(Errno::EINVAL);
    }
    let text = text.get(..size).unwrap_or(text);
    client.write(into, text)?;
    Ok(Value((text.len() as u64).cast_signed()))
}

/// Asks the kernel about `at`, links not followed, and tells the caller.
fn ask(client: &Calling<'_>, wanted: Wanted, at: &At<'_>) -> Result<Answer, Errno> {
    let (directory, name) = (at.directory.as_raw_fd(), at.name.as_ptr());
    let done = |result: i64| match result {
        0 => Ok(()),
        _ => Err(errno(io::Error::last_os_error())),
    };
    match wanted {
        Wanted::Stat { into } => {
            let mut stat = MaybeUninit::<libc::stat>::zeroed();
            let flags = libc::AT_SYMLINK_NOFOLLOW;
            // SAFETY: the name is a C string, and `stat` is what the call
            // fills, in the kernel's layout, which is the library's here.
            done(unsafe {
                libc::syscall(
                    libc::SYS_newfstatat,
                    directory,
                    name,
                    stat.as_mut_ptr(),
                    flags,
                )
            })?;
            client.write(into, bytes(&stat))?;
        }
        Wanted::Statx { flags, mask, into } => {
            let mut statx = MaybeUninit::<libc::statx>::zeroed();
            let kept = libc::AT_STATX_SYNC_TYPE | libc::AT_NO_AUTOMOUNT;
            let flags = flags & kept | libc::AT_SYMLINK_NOFOLLOW;
            // SAFETY: as above.
            done(unsafe {
                libc::syscall(
                    libc::SYS_statx,
                    directory,
                    name,
                    flags,
                    mask,
                    statx.as_mut_ptr(),
                )
            })?;
            client.write(into, bytes(&statx))?;
        }
        Wanted::Access { mode } => {
            if client.has_our_rights() {
                // SAFETY: the name is a C string, the rest plain numbers.
                done(unsafe { libc::syscall(libc::SYS_faccessat, directory, name, mode) })?;
            }
        }
        Wanted::FileSystem { into } => {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = rustix::fs::openat(at.directory, &at.name, flags, Mode::empty());
            let file = file.map_err(|error| errno(error.into()))?;
            let mut system = MaybeUninit::<libc::statfs>::zeroed();
            // SAFETY: `system` is what the call fills.
            let asked = unsafe { libc::fstatfs(file.as_raw_fd(), system.as_mut_ptr()) };
            done(asked.into())?;
            client.write(into, bytes(&system))?;
        }
        _ => return Ok(Native),
    }
    Ok(Value(0))
}

/// The bytes of a structure of the kernel's that was zeroed before it was
/// filled.
fn bytes<T>(structure: &MaybeUninit<T>) -> &[u8] {
    // SAFETY: all of its bytes were set, also those between its fields, and
    // they live as long as the reference.
    unsafe { std::slice::from_raw_parts(structure.as_ptr().cast(), size_of::<T>()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_are_those_of_the_kernel() {
        // include/uapi: asm/stat.h and asm/statfs.h of x86, linux/stat.h.
        assert_eq!(size_of::<libc::stat>(), 144);
        assert_eq!(size_of::<libc::statx>(), 256);
        assert_eq!(size_of::<libc::statfs>(), 120);
    }

    #[test]
    fn a_path_file_is_opened_for_what_is_possible() {
        use std::os::unix::fs::PermissionsExt;
        let path = std::env::temp_dir().join(format!("iogate-answer-{}", std::process::id()));
        std::fs::write(&path, "x").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o200)).unwrap();
        let at = At {
            directory: CWD,
            name: CString::new(path.to_str().unwrap()).unwrap(),
        };
        let flags = u64::from((libc::O_PATH | libc::O_CLOEXEC).cast_unsigned());
        let opened = open(&at, flags);
        assert!(matches!(opened, Ok(Answer::File(_, OnExec::Close))));
        std::fs::remove_file(path).unwrap();
        assert!(matches!(open(&at, flags), Err(Errno::ENOENT)));
    }

    #[test]
    fn only_an_open_may_create() {
        let open = |flags: i32| Wanted::Open {
            flags: u64::from(flags.cast_unsigned()),
        };
        assert!(creates(open(libc::O_CREAT | libc::O_RDWR)));
        assert!(!creates(open(libc::O_RDWR)) && !creates(Wanted::Enter));
    }
}
