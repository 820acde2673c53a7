//! Tables made and changed.

use iogate_dma::{Memory, MemoryError, Width};

use crate::{Entry, Format, Permissions};

/// Why a mapping cannot be entered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// An address that the format does not translate, or does not lead to.
    #[error("{0:#x} does not fit the format")]
    Address(u64),
    /// The piece is no multiple of the smallest page.
    #[error("{0:#x} is not aligned to a page")]
    Alignment(u64),
    /// Something is mapped there, or the entry is reserved.
    #[error("{0:#x} is mapped already")]
    Taken(u64),
    /// There is no page left for a table.
    #[error("there is no memory left for a table")]
    Full,
    /// Memory for tables cannot be accessed.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// Makes tables of one format in memory: for tests, and for hosts that lend a
/// table to real hardware.
///
/// Pages for tables come from the caller, one at a time; they are zeroed here.
/// Entries are written so that a walker beside it never sees a table before
/// its contents.
pub struct Builder<'m, F, P> {
    format: F,
    memory: &'m dyn Memory,
    pages: P,
    root: u64,
}

impl<'m, F: Format, P: FnMut() -> Option<u64>> Builder<'m, F, P> {
    /// An empty root table. `pages` gives the address of an unused page, as
    /// large as a table of the format and aligned to it.
    pub fn new(format: F, memory: &'m dyn Memory, pages: P) -> Result<Self, BuildError> {
        let mut builder = Self {
            format,
            memory,
            pages,
            root: 0,
        };
        builder.root = builder.page(format.top())?;
        Ok(builder)
    }

    /// Where the root table is.
    pub fn root(&self) -> u64 {
        self.root
    }

    /// Maps `length` bytes from `input` on to those from `output` on, by the
    /// largest pages that fit and that cover no more than `1 << largest`
    /// bytes. What was entered before an error stays.
    pub fn map(
        &mut self,
        input: u64,
        output: u64,
        length: u64,
        permissions: Permissions,
        largest: u32,
    ) -> Result<(), BuildError> {
        let mut done = 0;
        while done < length {
            let at = input.wrapping_add(done);
            let to = output.wrapping_add(done);
            let left = length.wrapping_sub(done);
            let level = self.level(at | to, left, to, permissions, largest)?;
            let leaf = self.format.leaf(to, level, permissions);
            let leaf = leaf.ok_or(BuildError::Address(to))?;
            let slot = self.slot(at, level)?;
            if self.memory.load(slot, Width::Qword)? != 0 {
                return Err(BuildError::Taken(at));
            }
            self.memory.store(slot, Width::Qword, leaf)?;
            done = done.saturating_add(1_u64.unbounded_shl(self.format.shape(level).shift));
        }
        Ok(())
    }

    /// Clears the entries of the pages between `input` and `input + length`;
    /// holes are passed over, and tables stay. A page that lies in the range
    /// with a part only is [`BuildError::Alignment`].
    pub fn unmap(&mut self, input: u64, length: u64) -> Result<(), BuildError> {
        let mut done = 0;
        while done < length {
            let at = input.wrapping_add(done);
            let (slot, level, entry) = self.deepest(at)?;
            let covers = 1_u64.unbounded_shl(self.format.shape(level).shift);
            let inside = at & covers.wrapping_sub(1);
            if matches!(self.format.decode(entry, level), Entry::Leaf { .. }) {
                if inside != 0 || length.wrapping_sub(done) < covers {
                    return Err(BuildError::Alignment(at));
                }
                self.memory.store(slot, Width::Qword, 0)?;
            }
            done = done.saturating_add(covers.wrapping_sub(inside));
        }
        Ok(())
    }

    /// The address of the entry of `level` for `input`, whose tables above are
    /// made where they are missing.
    pub fn slot(&mut self, input: u64, level: u8) -> Result<u64, BuildError> {
        if !self.format.input().accepts(input) {
            return Err(BuildError::Address(input));
        }
        let mut table = self.root;
        let mut at = self.format.top();
        loop {
            let slot = self.entry(table, at, input);
            if at == level {
                return Ok(slot);
            }
            let entry = self.memory.load(slot, Width::Qword)?;
            match self.format.decode(entry, at) {
                Entry::Table { address, level, .. } if level < at && level > 0 => {
                    table = address;
                    at = level;
                }
                Entry::Absent if entry == 0 && at > 1 => {
                    let page = self.page(at.wrapping_sub(1))?;
                    let entry = self.format.table(page, at);
                    let entry = entry.ok_or(BuildError::Address(page))?;
                    self.memory.store(slot, Width::Qword, entry)?;
                }
                _ => return Err(BuildError::Taken(input)),
            }
        }
    }

    /// The lowest entry that stands for `input`.
    fn deepest(&self, input: u64) -> Result<(u64, u8, u64), BuildError> {
        if !self.format.input().accepts(input) {
            return Err(BuildError::Address(input));
        }
        let mut table = self.root;
        let mut at = self.format.top();
        loop {
            let slot = self.entry(table, at, input);
            let entry = self.memory.load(slot, Width::Qword)?;
            match self.format.decode(entry, at) {
                Entry::Table { address, level, .. } if level < at && level > 0 => {
                    table = address;
                    at = level;
                }
                _ => return Ok((slot, at, entry)),
            }
        }
    }

    /// The highest level whose page fits, both addresses being in `aligned`.
    fn level(
        &self,
        aligned: u64,
        left: u64,
        output: u64,
        permissions: Permissions,
        largest: u32,
    ) -> Result<u8, BuildError> {
        let fits = |level: &u8| {
            let shift = self.format.shape(*level).shift;
            let bytes = 1_u64.unbounded_shl(shift);
            aligned & bytes.wrapping_sub(1) == 0
                && left >= bytes
                && (shift <= largest || *level == 1)
                && self.format.leaf(output, *level, permissions).is_some()
        };
        let level = (1..=self.format.top()).rev().find(fits);
        level.ok_or(BuildError::Alignment(aligned))
    }

    fn entry(&self, table: u64, level: u8, input: u64) -> u64 {
        let index = self.format.shape(level).index(input);
        table.wrapping_add(index.wrapping_mul(8))
    }

    fn page(&mut self, level: u8) -> Result<u64, BuildError> {
        let page = (self.pages)().ok_or(BuildError::Full)?;
        let entries = 1_u64.unbounded_shl(self.format.shape(level).bits);
        for index in 0..entries {
            let at = page.wrapping_add(index.wrapping_mul(8));
            self.memory.store(at, Width::Qword, 0)?;
        }
        Ok(page)
    }
}
