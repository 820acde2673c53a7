//! Tables whose addresses are themselves translated: stage 1 over stage 2.

use iogate_dma::{Access, Privilege};

use crate::{Format, Stop, Tables, walk};

/// Why an entry of a first stage cannot be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BehindError<E> {
    /// The second stage does not lead there.
    #[error("the second stage of {address:#x}: {stop}")]
    Stage {
        /// The address of the first stage's entry, before translation.
        address: u64,
        /// Where the second stage ended.
        stop: Stop<E>,
    },
    /// It leads to memory that cannot be accessed.
    #[error("the memory behind the second stage cannot be accessed")]
    Memory(E),
}

/// The tables of a first stage, as they are found behind a second one. With it
/// [`crate::walk`] and [`crate::scan`] work on nested tables: addresses of
/// tables pass through the second stage here; the caller passes the output of
/// the first stage through it too.
#[derive(Clone, Copy, Debug)]
pub struct Behind<'a, F, T> {
    /// The format of the second stage.
    pub format: &'a F,
    /// Its root table.
    pub root: u64,
    /// The memory that holds its tables, and those of the first stage.
    pub tables: &'a T,
}

impl<F: Format, T: Tables> Behind<'_, F, T> {
    fn output(&self, address: u64, access: Access) -> Result<u64, BehindError<T::Error>> {
        let privilege = Privilege::User;
        walk(
            self.format,
            self.root,
            self.tables,
            address,
            access,
            privilege,
        )
        .map(|translation| translation.output)
        .map_err(|stop| BehindError::Stage { address, stop })
    }
}

impl<F: Format, T: Tables> Tables for Behind<'_, F, T> {
    type Error = BehindError<T::Error>;

    fn load(&self, address: u64) -> Result<u64, Self::Error> {
        let output = self.output(address, Access::Read)?;
        self.tables.load(output).map_err(BehindError::Memory)
    }

    fn load_many(&self, address: u64, into: &mut [u64]) -> Result<(), Self::Error> {
        const PAGE: u64 = 1 << 12;
        let mut address = address;
        let mut rest = into;
        while !rest.is_empty() {
            let left = PAGE.wrapping_sub(address & PAGE.wrapping_sub(1)) >> 3;
            let count = usize::try_from(left).map_or(rest.len(), |left| left.min(rest.len()));
            let Some((piece, after)) = rest.split_at_mut_checked(count.max(1)) else {
                break;
            };
            let output = self.output(address, Access::Read)?;
            self.tables
                .load_many(output, piece)
                .map_err(BehindError::Memory)?;
            let bytes = u64::try_from(piece.len()).unwrap_or(0).wrapping_mul(8);
            address = address.wrapping_add(bytes);
            rest = after;
        }
        Ok(())
    }

    fn replace(&self, address: u64, current: u64, new: u64) -> Result<u64, Self::Error> {
        let output = self.output(address, Access::Atomic)?;
        let old = self.tables.replace(output, current, new);
        old.map_err(BehindError::Memory)
    }
}
