//! Buffers of a device's own memory, held by a descriptor and mapped by
//! IOMMU_IOAS_MAP_FILE, that their device may take back. What an extension
//! makes has no memory behind it: accesses to a mapping of it are refused.
//! Linux `drivers/iommu/iommufd/pages.c`, `iopt_alloc_dmabuf_pages`.

use std::sync::Arc;

use iogate_dma::Rights;
use iogate_space::Segment;

use crate::state::{File, State};
use crate::{Error, ErrorKind, FileId, FileKind, Host, Pages, Path, PinError, Pinned};

/// An open buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Buffer {
    length: u64,
    is_revoked: bool,
}

/// A part of a buffer.
#[derive(Debug)]
struct BufferPages {
    start: u64,
}

/// Nothing is pinned of what has no memory.
struct Nothing;

impl Pinned for Nothing {
    fn segments(&self) -> &[Segment] {
        &[]
    }

    fn private(&self) -> &[(u64, u64)] {
        &[]
    }
}

impl Pages for BufferPages {
    fn pin(&self, _: u64, _: u64, _: Rights) -> Result<Box<dyn Pinned>, PinError> {
        Ok(Box::new(Nothing))
    }

    fn start(&self) -> u64 {
        self.start
    }

    fn is_file(&self) -> bool {
        false
    }

    fn is_memory(&self) -> bool {
        false
    }

    fn address_space(&self) -> u64 {
        0
    }
}

impl Host {
    /// A buffer of `length` bytes: EINVAL for an empty one.
    pub fn buffer_create(&self, length: u64) -> Result<FileId, Error> {
        if length == 0 {
            return Err(Error::invalid("the buffer is empty"));
        }
        let mut state = self.lock();
        let file = self.enter(File {
            kind: FileKind::Buffer,
            path: Path::Cdev,
            usable: true,
        });
        let is_revoked = false;
        state.buffers.insert(file, Buffer { length, is_revoked });
        Ok(file)
    }

    /// Has a buffer's device take it back, or give it out again: EINVAL for
    /// another file. What is mapped stays so and ends nowhere either way.
    pub fn buffer_revoke(&self, file: FileId, revoked: bool) -> Result<(), Error> {
        let mut state = self.lock();
        let mut buffer = state.buffer(file)?;
        buffer.is_revoked = revoked;
        state.buffers.insert(file, buffer);
        Ok(())
    }

    /// A part of a buffer, to be mapped. EINVAL for another file or past the
    /// end, ENODEV while the buffer is taken back.
    pub fn buffer_pages(
        &self,
        file: FileId,
        start: u64,
        length: u64,
    ) -> Result<Arc<dyn Pages>, Error> {
        let state = self.lock();
        let buffer = state.buffer(file)?;
        let end = start.checked_add(length);
        if end.is_none_or(|end| end > buffer.length) {
            return Err(Error::invalid("the buffer ends before the mapping does"));
        }
        if buffer.is_revoked {
            return Err(Error::new(
                ErrorKind::NoDevice,
                "the buffer's device has taken it back",
            ));
        }
        Ok(Arc::new(BufferPages { start }))
    }
}

impl State {
    fn buffer(&self, file: FileId) -> Result<Buffer, Error> {
        let buffer = self.buffers.get(&file).copied();
        buffer.ok_or(Error::invalid("the descriptor is no buffer"))
    }
}
