//! Tables of random entries, and messages that ask for them.

use crate::Question;
use crate::choices::Choices;

/// Where the table stands when there is memory behind it.
pub(crate) const TABLE: u64 = 0x10_0000;
/// Where neither machine has memory.
const NOWHERE: u64 = 0x3000_0000;
/// Entries that are written, from the first on; and from this one on, near the end of the largest table.
pub(crate) const ENTRIES: u64 = 24;
const LAST: u64 = 0xfff8;

/// Functions that send. The last stands behind a root port.
pub(crate) const SOURCES: [u16; 6] = [0x20, 0x30, 0x33, 0x35, 0x37, 0x4000];
/// The one whose messages have data of 32 bits.
pub(crate) const WIDE: u16 = 0x28;

/// A table and how the unit is set to use it.
#[derive(Clone, Debug)]
pub(crate) struct World {
    /// IRTA_REG.
    pub(crate) table: u64,
    /// GSTS.CFIS.
    pub(crate) compatibility: bool,
    /// Index and both halves.
    pub(crate) entries: Vec<(u64, [u64; 2])>,
}

impl World {
    pub(crate) fn build(choices: &mut Choices<'_>, extended: bool) -> Self {
        let size = choices.one_of(&[2, 3, 3, 4, 4, 4, 7, 15]);
        let base = if choices.rarely(10) { NOWHERE } else { TABLE };
        let extended = extended && !choices.rarely(60);
        let indices = (0..ENTRIES).chain(LAST..0x1_0000);
        Self {
            table: base | u64::from(extended) << 11 | size,
            compatibility: choices.rarely(128),
            entries: indices
                .map(|index| (index, entry(choices, extended)))
                .collect(),
        }
    }

    /// A message of a function.
    pub(crate) fn question(&self, choices: &mut Choices<'_>) -> Question {
        let index = match choices.below(16) {
            0 => LAST + choices.below(8),
            1 => choices.below(0x1_0000),
            _ => choices.below(ENTRIES),
        };
        let (source, mut data) = if choices.rarely(48) {
            (WIDE, choices.word() as u32)
        } else {
            let source = choices.one_of(&SOURCES);
            (
                source,
                u32::from(choices.byte()) << 8 | u32::from(choices.byte()),
            )
        };
        let (mut handle, mut format) = (index, 0x10);
        match choices.below(16) {
            0 => format = 0,
            1..=5 => {
                format = 0x18;
                let subhandle = if choices.rarely(32) { data } else { data & 3 };
                let rest = if choices.rarely(64) {
                    data & !0xffff
                } else {
                    0
                };
                data = rest | subhandle & 0xffff;
                if !choices.rarely(24) {
                    handle = index.saturating_sub(u64::from(subhandle & 0xffff));
                }
            }
            _ => {}
        }
        let address = 0xfee0_0000 | (handle & 0x7fff) << 5 | (handle >> 15 & 1) << 2 | format;
        Question {
            source,
            address,
            data,
        }
    }

    pub(crate) fn extended(&self) -> bool {
        self.table >> 11 & 1 != 0
    }

    /// The index that a message asks for, not cut to 16 bits; none in compatibility format.
    pub(crate) fn index(question: &Question) -> Option<u64> {
        let address = question.address;
        if address & 0x10 == 0 {
            return None;
        }
        let handle = address >> 5 & 0x7fff | (address >> 2 & 1) << 15;
        let subhandle = if address & 8 != 0 {
            u64::from(question.data & 0xffff)
        } else {
            0
        };
        Some(handle + subhandle)
    }

    /// The entry with this index; zeros where none was written.
    pub(crate) fn entry(&self, index: u64) -> [u64; 2] {
        let found = self.entries.iter().find(|(at, _)| *at == index);
        found.map_or([0; 2], |(_, entry)| *entry)
    }

    /// What a person wants to know of a question.
    pub(crate) fn told(&self, question: &Question) -> String {
        let index = Self::index(question);
        let entry = index.map(|index| self.entry(index));
        format!(
            "index {index:x?}, entry {entry:x?}, IRTA {:#x}, compatibility format {}",
            self.table, self.compatibility
        )
    }
}

fn entry(choices: &mut Choices<'_>, extended: bool) -> [u64; 2] {
    let vector = u64::from(choices.byte());
    let mode = u64::from(choices.byte()) & 0xfc;
    let available = choices.below(16) << 8;
    let destination = choices.word() & 0xffff_ffff;
    let destination = match extended {
        true if choices.rarely(128) => destination & 0xff,
        true => destination,
        false => destination & 0xff00,
    };
    let present = !choices.rarely(24);
    let silent = choices.rarely(64);
    let mut low = u64::from(present)
        | u64::from(silent) << 1
        | mode
        | available
        | vector << 16
        | destination << 32;
    let mut id = u64::from(choices.one_of(&SOURCES));
    if choices.rarely(64) {
        id = choices.word() & 0x4747;
    }
    let kind = choices.one_of(&[0, 0, 1, 1, 1, 1, 1, 2, 2, 3]);
    let mut high = id | choices.below(4) << 16 | kind << 18;
    match choices.below(32) {
        0 | 1 => low ^= 1 << choices.below(64),
        2 => high ^= 1 << choices.below(64),
        3 => low |= 1 << 15,
        4 => [low, high] = [choices.word() | 1, choices.word()],
        _ => {}
    }
    [low, high]
}
