//! Noticed calls that name a path, in our own words.

use libc::c_long;

use super::walk::Last;
use crate::listener::Call;

/// The calls that a filter has to notice. No other way of running notices
/// them.
pub(crate) const NOTICED: [c_long; 23] = [
    libc::SYS_open,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_creat,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_access,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_statfs,
    libc::SYS_chdir,
    libc::SYS_getcwd,
    libc::SYS_getxattr,
    libc::SYS_lgetxattr,
    libc::SYS_listxattr,
    libc::SYS_llistxattr,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
];

/// What a call wants of what its path leads to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Wanted {
    /// A descriptor, with these O_ flags.
    Open { flags: u64 },
    /// A struct stat.
    Stat { into: u64 },
    /// A struct statx.
    Statx { flags: i32, mask: u32, into: u64 },
    /// Whether it may be accessed so.
    Access { mode: i32 },
    /// The text of a link.
    Text { into: u64, size: i32 },
    /// A struct statfs.
    FileSystem { into: u64 },
    /// To make it the working directory.
    Enter,
    /// An extended attribute, of which there are none.
    Attribute,
    /// A list of them.
    Attributes,
}

/// A call that names a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct PathCall {
    pub(super) wanted: Wanted,
    /// AT_FDCWD, or a directory of the caller's.
    pub(super) directory: i32,
    /// Where the path stands.
    pub(super) path: Path,
    pub(super) last: Last,
}

/// Where a path stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Path {
    /// At this address.
    At(u64),
    /// At this address, unless it is empty: then the directory's descriptor
    /// itself is meant.
    AtOrNone(u64),
    /// The directory's descriptor itself is meant.
    None,
}

impl PathCall {
    /// The path call that `call` is; `None` if it is none, or restricts its
    /// way, which the kernel then goes. `read` reads an 8-byte word of the
    /// client's.
    pub(crate) fn of(call: &Call, read: impl Fn(u64) -> Option<u64>) -> Option<Self> {
        let at = |index, wanted| Self {
            wanted,
            directory: libc::AT_FDCWD,
            path: Path::At(call.argument(index)),
            last: Last::Followed,
        };
        let stat = Wanted::Stat {
            into: call.argument(1),
        };
        Some(match call.number() {
            libc::SYS_open => at(0, Wanted::Open { flags: 0 }).open(call.uint(1).into()),
            libc::SYS_creat => {
                let flags = libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC;
                at(0, Wanted::Open { flags: 0 }).open(flags.cast_unsigned().into())
            }
            libc::SYS_openat => at(1, Wanted::Open { flags: 0 })
                .from(call.int(0))
                .open(call.uint(2).into()),
            libc::SYS_openat2 => {
                let how = call.argument(2);
                if read(how.checked_add(16)?)? != 0 {
                    return None;
                }
                at(1, Wanted::Open { flags: 0 })
                    .from(call.int(0))
                    .open(read(how)?)
            }
            libc::SYS_stat => at(0, stat),
            libc::SYS_lstat => at(0, stat).itself(),
            libc::SYS_fstat => Self {
                path: Path::None,
                ..at(0, stat).from(call.int(0))
            },
            libc::SYS_newfstatat => at(
                1,
                Wanted::Stat {
                    into: call.argument(2),
                },
            )
            .from(call.int(0))
            .with(call.int(3)),
            libc::SYS_statx => at(
                1,
                Wanted::Statx {
                    flags: call.int(2),
                    mask: call.uint(3),
                    into: call.argument(4),
                },
            )
            .from(call.int(0))
            .with(call.int(2)),
            libc::SYS_access => at(0, Wanted::Access { mode: call.int(1) }),
            libc::SYS_faccessat => at(1, Wanted::Access { mode: call.int(2) }).from(call.int(0)),
            libc::SYS_faccessat2 => at(1, Wanted::Access { mode: call.int(2) })
                .from(call.int(0))
                .with(call.int(3)),
            libc::SYS_readlink => at(
                0,
                Wanted::Text {
                    into: call.argument(1),
                    size: call.int(2),
                },
            )
            .itself(),
            libc::SYS_readlinkat => at(
                1,
                Wanted::Text {
                    into: call.argument(2),
                    size: call.int(3),
                },
            )
            .from(call.int(0))
            .itself(),
            libc::SYS_statfs => at(
                0,
                Wanted::FileSystem {
                    into: call.argument(1),
                },
            ),
            libc::SYS_chdir => at(0, Wanted::Enter),
            libc::SYS_getxattr | libc::SYS_setxattr => at(0, Wanted::Attribute),
            libc::SYS_lgetxattr | libc::SYS_lsetxattr => at(0, Wanted::Attribute).itself(),
            libc::SYS_listxattr => at(0, Wanted::Attributes),
            libc::SYS_llistxattr => at(0, Wanted::Attributes).itself(),
            _ => return None,
        })
    }

    fn from(self, directory: i32) -> Self {
        Self { directory, ..self }
    }

    fn itself(self) -> Self {
        Self {
            last: Last::Itself,
            ..self
        }
    }

    /// With AT_ flags.
    fn with(self, flags: i32) -> Self {
        let path = match self.path {
            Path::At(address) if flags & libc::AT_EMPTY_PATH != 0 => Path::AtOrNone(address),
            path => path,
        };
        let call = Self { path, ..self };
        match flags & libc::AT_SYMLINK_NOFOLLOW {
            0 => call,
            _ => call.itself(),
        }
    }

    /// With O_ flags.
    fn open(self, flags: u64) -> Self {
        let call = Self {
            wanted: Wanted::Open { flags },
            ..self
        };
        match has(flags, libc::O_NOFOLLOW) || has(flags, libc::O_CREAT | libc::O_EXCL) {
            true => call.itself(),
            false => call,
        }
    }
}

/// Whether O_ flags have all of `wanted`.
pub(super) fn has(flags: u64, wanted: i32) -> bool {
    let wanted = u64::from(wanted.cast_unsigned());
    flags & wanted == wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_noticed_call_is_understood() {
        for number in NOTICED {
            let found = PathCall::of(&Call::test(number, [0; 6]), |_| Some(0));
            assert_eq!(found.is_none(), number == libc::SYS_getcwd, "{number}");
        }
    }

    #[test]
    fn a_descriptor_alone_is_meant_only_with_the_flag() {
        let stat = |flags: i32| {
            let flags = flags.cast_unsigned().into();
            let call = Call::test(libc::SYS_newfstatat, [7, 8, 9, flags, 0, 0]);
            PathCall::of(&call, |_| None).unwrap()
        };
        assert_eq!(stat(0).path, Path::At(8));
        assert_eq!(stat(libc::AT_EMPTY_PATH).path, Path::AtOrNone(8));
        assert_eq!(stat(libc::AT_SYMLINK_NOFOLLOW).last, Last::Itself);
        assert_eq!((stat(0).directory, stat(0).last), (7, Last::Followed));
    }

    #[test]
    fn an_openat2_that_restricts_its_way_is_left_to_the_kernel() {
        let call = Call::test(libc::SYS_openat2, [7, 8, 100, 24, 0, 0]);
        let how = |resolve| {
            move |address| match address {
                100 => Some(2),
                116 => Some(resolve),
                _ => None,
            }
        };
        assert!(PathCall::of(&call, how(8)).is_none());
        let open = PathCall::of(&call, how(0)).unwrap();
        assert_eq!(open.wanted, Wanted::Open { flags: 2 });
    }
}
