//! Page tables by the specification. VT-d 4.1 sections 3.6, 3.7, 9.7 and 9.8.

use super::memory::Plain;
use super::translate::{Access, Found};

/// How a walk of one stage ended.
#[derive(Clone, Debug)]
pub(crate) enum Walked {
    Page(Page),
    /// An entry cannot be read: whether it is one of the top table, and its address.
    NoMemory {
        top: bool,
    },
    /// Not present, at an entry that was read.
    Absent,
    Reserved,
    /// A second-stage entry allows neither reading nor writing.
    Nothing {
        write: bool,
    },
    /// Forbidden: reading, writing, by a user, or executing.
    NoRead,
    NoWrite,
    NoUser,
    NoExecute,
    /// While an entry of the first stage was read, or its flags set, the second stage ended so.
    Behind {
        inner: Box<Walked>,
        top: bool,
        flag: bool,
    },
    /// The table's address is none of the second stage's input.
    BehindWidth,
}

/// Where a walk led.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    pub(crate) output: u64,
    /// Bytes of the page.
    pub(crate) size: u64,
    pub(crate) read: bool,
    pub(crate) write: bool,
}

/// What the tables of the second stage are like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Second {
    pub(crate) levels: u32,
    pub(crate) host_bits: u32,
    pub(crate) pages_2m: bool,
    pub(crate) pages_1g: bool,
    pub(crate) snoop: bool,
    pub(crate) accessed: bool,
}

/// What the tables of the first stage are like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct First {
    pub(crate) levels: u32,
    pub(crate) host_bits: u32,
    pub(crate) pages_1g: bool,
    pub(crate) no_execute: bool,
    pub(crate) write_protect: bool,
    pub(crate) extended_accessed: bool,
}

/// Bits `low` to `high`, both included; none if `low` is above `high`.
pub(crate) fn mask(low: u32, high: u32) -> u64 {
    (low..=high).fold(0, |mask, bit| mask | 1 << bit)
}

fn place(table: u64, address: u64, level: u32) -> u64 {
    table + 8 * (address >> (12 + 9 * (level - 1)) & 0x1ff)
}

/// One level after the other. `more` gets the reasons that would have been given had the entries been looked at in
/// another order, which the specification leaves open.
pub(crate) fn second(
    set: &Second,
    memory: &Plain,
    root: u64,
    address: u64,
    access: Access,
    touched: &mut Vec<(u64, u64)>,
    more: &mut Vec<Walked>,
) -> Walked {
    let (mut read, mut write) = (true, true);
    let mut table = root;
    let mut level = set.levels;
    let mut flags = Vec::new();
    loop {
        let at = place(table, address, level);
        let Some(entry) = memory.word(at) else {
            return Walked::NoMemory {
                top: level == set.levels,
            };
        };
        let (r, w) = (entry & 1 != 0, entry & 2 != 0);
        if !r && !w {
            return Walked::Nothing {
                write: access == Access::Write,
            };
        }
        read &= r;
        write &= w;
        let denied = match access {
            Access::Read if !read => Some(Walked::NoRead),
            Access::Write if !write => Some(Walked::NoWrite),
            _ => None,
        };
        more.extend(denied.clone());
        let large = entry & 1 << 7 != 0;
        let leaf = level == 1 || large;
        let mut reserved = mask(set.host_bits, 51) | 1 << 62;
        if leaf && level > 1 {
            reserved |= mask(12, 12 + 9 * (level - 1) - 1);
        }
        if leaf && !set.snoop {
            reserved |= 1 << 11;
        }
        let wrong_size = leaf
            && match level {
                1 => false,
                2 => !set.pages_2m,
                3 => !set.pages_1g,
                _ => true,
            };
        if entry & reserved != 0 || wrong_size {
            return Walked::Reserved;
        }
        flags.push((
            at,
            1 << 8
                | if leaf && access == Access::Write {
                    1 << 9
                } else {
                    0
                },
        ));
        if leaf {
            if let Some(denied) = denied {
                return denied;
            }
            if set.accessed {
                touched.extend(flags);
            }
            let size = 1 << (12 + 9 * (level - 1));
            return Walked::Page(Page {
                output: entry & mask(12, 51) | address & (size - 1),
                size,
                read,
                write,
            });
        }
        table = entry & mask(12, 51);
        level -= 1;
    }
}

/// The first stage, whose tables may lie behind a second: `(set, root, input bits)`.
#[allow(clippy::too_many_arguments)]
pub(crate) fn first(
    set: &First,
    behind: Option<(&Second, u64, u32)>,
    memory: &Plain,
    root: u64,
    address: u64,
    access: Access,
    privileged: bool,
    touched: &mut Vec<(u64, u64)>,
    more: &mut Vec<Walked>,
) -> Walked {
    let (mut write, mut user) = (true, true);
    let mut table = root;
    let mut level = set.levels;
    let mut flags = Vec::new();
    loop {
        let guest = place(table, address, level);
        let at = match behind {
            None => guest,
            Some((_, _, bits)) if guest >> bits != 0 => return Walked::BehindWidth,
            Some((second_set, second_root, _)) => {
                let walked = second(
                    second_set,
                    memory,
                    second_root,
                    guest,
                    Access::Read,
                    touched,
                    more,
                );
                match walked {
                    Walked::Page(page) => page.output,
                    other => {
                        return Walked::Behind {
                            inner: Box::new(other),
                            top: level == set.levels,
                            flag: false,
                        };
                    }
                }
            }
        };
        let Some(entry) = memory.word(at) else {
            return Walked::NoMemory {
                top: level == set.levels,
            };
        };
        if entry & 1 == 0 {
            return Walked::Absent;
        }
        write &= entry & 2 != 0;
        user &= entry & 4 != 0;
        if !user && !privileged {
            more.push(Walked::NoUser);
        }
        let may_write = write || privileged && !set.write_protect;
        if access == Access::Write && !may_write {
            more.push(Walked::NoWrite);
        }
        let large = entry & 1 << 7 != 0;
        let leaf = level == 1 || large;
        let mut reserved = mask(set.host_bits, 51);
        if leaf && level > 1 {
            // Bit 12 is the PAT bit.
            reserved |= mask(13, 12 + 9 * (level - 1) - 1);
        }
        if !set.no_execute {
            reserved |= 1 << 63;
        }
        let wrong_size = leaf
            && match level {
                1 | 2 => false,
                3 => !set.pages_1g,
                _ => true,
            };
        if entry & reserved != 0 || wrong_size {
            return Walked::Reserved;
        }
        let extended = if set.extended_accessed { 1 << 10 } else { 0 };
        let dirty = if leaf && access == Access::Write {
            1 << 6
        } else {
            0
        };
        flags.push((at, guest, entry, 1 << 5 | extended | dirty));
        if leaf {
            if !user && !privileged {
                return Walked::NoUser;
            }
            if access == Access::Write && !may_write {
                return Walked::NoWrite;
            }
            // Setting a flag is a write, which the second stage has to allow.
            for &(_, guest, entry, bits) in &flags {
                let Some((second_set, second_root, _)) = behind else {
                    break;
                };
                if entry & bits == bits {
                    continue;
                }
                let access = Access::Write;
                let walked = second(
                    second_set,
                    memory,
                    second_root,
                    guest,
                    access,
                    touched,
                    more,
                );
                if !matches!(walked, Walked::Page(_)) {
                    return Walked::Behind {
                        inner: Box::new(walked),
                        top: false,
                        flag: true,
                    };
                }
            }
            touched.extend(flags.iter().map(|&(at, _, _, bits)| (at, bits)));
            let size = 1_u64 << (12 + 9 * (level - 1));
            return Walked::Page(Page {
                output: entry & mask(12, 51) & !(size - 1) | address & (size - 1),
                size,
                read: true,
                write: may_write,
            });
        }
        table = entry & mask(12, 51);
        level -= 1;
    }
}

/// The end of a walk as a fault reason. VT-d 4.1 section 7.1.3: LSL and LGN in legacy mode, SSS, SFS and SGN in scalable mode.
pub(crate) fn reason(walked: &Walked, scalable: bool, is_first: bool) -> Found {
    let number = match (walked, scalable, is_first) {
        (Walked::NoMemory { top: true }, false, _) => 0x03,
        (Walked::NoMemory { top: false }, false, _) => 0x07,
        (Walked::NoWrite, false, _) => 0x05,
        (Walked::NoRead, false, _) => 0x06,
        (Walked::Reserved, false, _) => 0x0c,
        (Walked::NoMemory { top: false }, true, true) => 0x70,
        (Walked::Absent, _, _) => 0x71,
        (Walked::Reserved, true, true) => 0x72,
        (Walked::NoMemory { top: true }, true, true) => 0x73,
        (Walked::BehindWidth, _, _) => 0x74,
        (Walked::NoMemory { top: false }, true, false) => 0x78,
        (Walked::Reserved, true, false) => 0x7a,
        (Walked::NoMemory { top: true }, true, false) => 0x7b,
        (Walked::NoUser, _, _) => 0x81,
        (Walked::NoExecute, _, _) => 0x82,
        (Walked::NoWrite, true, _) => 0x85,
        (Walked::NoRead, true, _) => 0x86,
        (Walked::Nothing { .. }, true, _) => 0x79,
        (Walked::Nothing { write: true }, false, _) => 0x05,
        (Walked::Nothing { write: false }, false, _) => 0x06,
        (Walked::Behind { inner, top, flag }, _, _) => match (&**inner, top, flag) {
            (Walked::NoRead | Walked::NoWrite | Walked::Nothing { .. }, _, true) => 0x77,
            (Walked::NoRead | Walked::Nothing { .. }, true, _) => 0x75,
            (Walked::NoRead | Walked::Nothing { .. }, false, _) => 0x76,
            (other, _, _) => return reason(other, true, false),
        },
        (Walked::Page(_), _, _) => unreachable!("a page is no fault"),
    };
    Found::reason(number)
}
