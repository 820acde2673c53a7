//! How arguments are read, and how chains of capabilities are written. Linux
//! `drivers/vfio/vfio_main.c`, `vfio_info_cap_add`.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::Call;
use crate::{Client, Errno};

/// Structures that begin with `argsz`: what the client says it has room for.
pub(crate) trait Argument: Copy + FromBytes + IntoBytes + Immutable {
    /// Bytes that must be there.
    const MINIMUM: usize;
    /// What the client said.
    fn argsz(&self) -> u32;
}

impl Call<'_> {
    /// The argument, read once; what lies beyond the minimum is zero. EFAULT;
    /// EINVAL if the client says that it is shorter than the minimum.
    pub(crate) fn read<T: Argument>(&self) -> Result<T, Errno> {
        let mut body = T::new_zeroed();
        let bytes = body.as_mut_bytes().get_mut(..T::MINIMUM);
        self.client
            .read(self.argument, bytes.ok_or(Errno::EFAULT)?)?;
        match u64::from(body.argsz()) >= self.minimum::<T>() {
            true => Ok(body),
            false => Err(Errno::EINVAL),
        }
    }

    fn minimum<T: Argument>(&self) -> u64 {
        u64::try_from(T::MINIMUM).unwrap_or(u64::MAX)
    }

    /// Writes the first `length` bytes of the argument back.
    pub(crate) fn write<T: Argument>(&self, body: &T, length: usize) -> Result<(), Errno> {
        let bytes = body.as_bytes();
        let bytes = bytes.get(..length.min(bytes.len())).unwrap_or(bytes);
        Ok(self.client.write(self.argument, bytes)?)
    }

    /// Where the client's structure has `offset`.
    pub(crate) fn at(&self, offset: usize) -> Result<u64, Errno> {
        let offset = u64::try_from(offset).map_err(|_| Errno::EFAULT)?;
        self.argument.checked_add(offset).ok_or(Errno::EFAULT)
    }
}

/// Reads a plain value.
pub(crate) fn read_value<const N: usize>(
    client: &dyn Client,
    address: u64,
) -> Result<[u8; N], Errno> {
    let mut bytes = [0; N];
    client.read(address, &mut bytes)?;
    Ok(bytes)
}

/// Bytes of `struct vfio_info_cap_header`: id, version, offset of the next.
const HEADER: usize = 8;

/// A chain of capabilities that follows a structure.
pub(crate) struct Chain {
    bytes: Vec<u8>,
    /// Where the next header's offset goes.
    link: Option<usize>,
    /// Where the chain begins in the client's structure.
    base: usize,
}

impl Chain {
    /// An empty chain that is to follow a structure of `base` bytes.
    pub(crate) fn after(base: usize) -> Self {
        Self {
            bytes: Vec::new(),
            link: None,
            base,
        }
    }

    /// Adds a capability; its size is padded to 8 bytes.
    pub(crate) fn add(&mut self, id: u16, version: u16, body: &[u8]) {
        let at = self.bytes.len();
        let offset = u32::try_from(self.base.saturating_add(at)).unwrap_or(0);
        if let Some(link) = self.link
            && let Some(next) = self.bytes.get_mut(link..link.saturating_add(4))
        {
            next.copy_from_slice(&offset.to_ne_bytes());
        }
        self.link = Some(at.saturating_add(4));
        self.bytes.extend(id.to_ne_bytes());
        self.bytes.extend(version.to_ne_bytes());
        self.bytes.extend([0; 4]);
        self.bytes.extend(body);
        let padded = at
            .saturating_add(HEADER)
            .saturating_add(body.len())
            .next_multiple_of(8);
        self.bytes.resize(padded, 0);
    }

    /// Where the chain ends in the client's structure.
    pub(crate) fn end(&self) -> Result<u32, Errno> {
        let end = self.base.saturating_add(self.bytes.len());
        u32::try_from(end).map_err(|_| Errno::EINVAL)
    }

    #[cfg(test)]
    pub(crate) fn length(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Writes the chain if the client has room: then its offset is returned,
    /// else how much room it needs in all.
    pub(crate) fn write(&self, call: &Call<'_>, argsz: u32) -> Result<Placed, Errno> {
        let needed = self.end()?;
        if argsz < needed {
            return Ok(Placed::Needs(needed));
        }
        call.client.write(call.at(self.base)?, &self.bytes)?;
        Ok(Placed::At(u32::try_from(self.base).unwrap_or(0)))
    }
}

/// What became of a chain.
pub(crate) enum Placed {
    /// It stands at this offset.
    At(u32),
    /// The client needs this `argsz`.
    Needs(u32),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_linked_by_offsets_from_the_structure_and_padded_to_8() {
        let mut chain = Chain::after(24);
        chain.add(2, 1, &[0xaa; 4]);
        chain.add(3, 1, &[]);
        let u32_at = |at: usize| u32::from_ne_bytes(chain.bytes[at..at + 4].try_into().unwrap());
        assert_eq!(chain.bytes.len(), 24);
        assert_eq!(u32_at(0), 2 | 1 << 16);
        assert_eq!(u32_at(4), 24 + 16);
        assert_eq!(u32_at(8), 0xaaaa_aaaa);
        assert_eq!(u32_at(16), 3 | 1 << 16);
        assert_eq!(u32_at(20), 0);
    }
}
