//! One address through the tables.

use iogate_dma::{Access, Privilege};

use crate::{Entry, Format, Permissions, Tables};

/// Levels that a walk with flags can pass; no format has more.
const LEVELS: usize = 8;
/// How often a walk begins anew because somebody else changed an entry while
/// its flags were set.
const ATTEMPTS: u32 = 64;

/// Where an address leads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translation {
    /// The output address of the address walked.
    pub output: u64,
    /// The page's size less one byte: the page of the input address `a` runs
    /// from `a & !mask` to `a | mask`.
    pub mask: u64,
    /// What the whole path allows.
    pub permissions: Permissions,
    /// The leaf as it was read, before flags were set.
    pub entry: u64,
    /// The leaf's level.
    pub level: u8,
}

/// Why a walk ended before memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Reason<E> {
    /// The format cannot translate this address; no table was read.
    #[error("the address is outside of the format's")]
    Address,
    /// Nothing is mapped.
    #[error("the entry is not present")]
    Absent,
    /// A reserved bit is set.
    #[error("a reserved bit is set in the entry")]
    Reserved,
    /// The path does not allow the access.
    #[error("the path does not allow the access")]
    Permission,
    /// The entry cannot be read, or its flags cannot be written.
    #[error("the entry cannot be accessed")]
    Table(E),
    /// The entry changed each time that its flags were about to be set.
    #[error("the entry does not stand still")]
    Unsteady,
}

/// Where and why a walk ended before memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("level {level}, entry {entry:#x} at {address:#x}: {reason}")]
pub struct Stop<E> {
    /// The level of the table, the top one if none was read.
    pub level: u8,
    /// The address of the entry; of the root table if none was read.
    pub address: u64,
    /// The entry; 0 if it was not read.
    pub entry: u64,
    /// What the path allows as far as it went, this entry included if it maps
    /// memory.
    pub permissions: Permissions,
    /// Why.
    pub reason: Reason<E>,
}

/// One entry on the path.
#[derive(Clone, Copy)]
struct Passed {
    address: u64,
    entry: u64,
    level: u8,
    allowed: Permissions,
}

/// Translates `address` through the tables of `format` at `root` for one
/// access, and sets the accessed and dirty flags that the format wants.
///
/// A refused access sets no flag. Reads each level's entry by one load; an
/// entry that changes under the walk gives the old or the new path, never a
/// mixture within an entry.
#[inline]
pub fn walk<F: Format, T: Tables>(
    format: &F,
    root: u64,
    tables: &T,
    address: u64,
    access: Access,
    privilege: Privilege,
) -> Result<Translation, Stop<T::Error>> {
    let request = (address, access, privilege);
    let mut flagged = true;
    let found = descend(format, root, tables, request, |passed, leaf| {
        flagged &= format.touched(passed.entry, leaf, access) == passed.entry;
    })?;
    if flagged {
        return Ok(found);
    }
    walk_and_flag(format, root, tables, request)
}

/// Walks anew until every entry on the path has its flags.
#[cold]
fn walk_and_flag<F: Format, T: Tables>(
    format: &F,
    root: u64,
    tables: &T,
    request: (u64, Access, Privilege),
) -> Result<Translation, Stop<T::Error>> {
    let (_, access, _) = request;
    for _ in 0..ATTEMPTS {
        let mut path = [None; LEVELS];
        let mut slots = path.iter_mut();
        let found = descend(format, root, tables, request, |passed, leaf| {
            if let Some(slot) = slots.next() {
                *slot = Some((passed, leaf));
            }
        })?;
        let mut steady = true;
        for (passed, leaf) in path.into_iter().flatten() {
            let wanted = format.touched(passed.entry, leaf, access);
            if steady && wanted != passed.entry {
                let old = tables.replace(passed.address, passed.entry, wanted);
                steady = old.map_err(|error| passed.stop(Reason::Table(error)))? == passed.entry;
            }
        }
        if steady {
            return Ok(found);
        }
    }
    Err(Stop {
        level: format.top(),
        address: root,
        entry: 0,
        permissions: Permissions::ALL,
        reason: Reason::Unsteady,
    })
}

/// Walks down and tells of every entry on the path, the leaf as `true`.
#[inline]
fn descend<F: Format, T: Tables>(
    format: &F,
    root: u64,
    tables: &T,
    (address, access, privilege): (u64, Access, Privilege),
    mut pass: impl FnMut(Passed, bool),
) -> Result<Translation, Stop<T::Error>> {
    let mut at = Passed {
        address: root,
        entry: 0,
        level: format.top(),
        allowed: Permissions::ALL,
    };
    if !format.input().accepts(address) {
        return Err(at.stop(Reason::Address));
    }
    let mut table = root;
    loop {
        let index = format.shape(at.level).index(address);
        at.address = table.wrapping_add(index.wrapping_mul(8));
        at.entry = match tables.load(at.address) {
            Ok(entry) => entry,
            Err(error) => {
                at.entry = 0;
                return Err(at.stop(Reason::Table(error)));
            }
        };
        match format.decode(at.entry, at.level) {
            Entry::Absent => return Err(at.stop(Reason::Absent)),
            Entry::Reserved => return Err(at.stop(Reason::Reserved)),
            Entry::Table {
                address: next,
                level,
                permissions,
            } => {
                // Levels go down, so that every walk ends.
                if level >= at.level || level == 0 {
                    return Err(at.stop(Reason::Reserved));
                }
                pass(at, false);
                at.allowed = at.allowed & permissions;
                table = next;
                at.level = level;
            }
            Entry::Leaf {
                address: page,
                shift,
                permissions,
            } => {
                at.allowed = at.allowed & permissions;
                if !at.allowed.allow(access, privilege) {
                    return Err(at.stop(Reason::Permission));
                }
                pass(at, true);
                let mask = 1_u64.unbounded_shl(shift).wrapping_sub(1);
                return Ok(Translation {
                    output: page & !mask | address & mask,
                    mask,
                    permissions: at.allowed,
                    entry: at.entry,
                    level: at.level,
                });
            }
        }
    }
}

impl Passed {
    fn stop<E>(self, reason: Reason<E>) -> Stop<E> {
        Stop {
            level: self.level,
            address: self.address,
            entry: self.entry,
            permissions: self.allowed,
            reason,
        }
    }
}
