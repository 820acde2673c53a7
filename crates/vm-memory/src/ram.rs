//! The guest's RAM, as a unit wants it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use iogate_dma::{Memory, MemoryError, Width};
use vm_memory::bitmap::Bitmap;
use vm_memory::guest_memory::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, VolatileMemory};

/// A guest's RAM by guest-physical address.
pub struct Ram<M>(Arc<M>);

impl<M: GuestMemoryBackend> Ram<M> {
    /// The RAM that `memory` is.
    pub fn new(memory: Arc<M>) -> Self {
        Self(memory)
    }
}

/// What an error of vm-memory at `address` is here.
fn absent(address: u64, error: &Error) -> MemoryError {
    let done = match error {
        Error::PartialBuffer { completed, .. } => u64::try_from(*completed).unwrap_or(0),
        _ => 0,
    };
    MemoryError::Absent {
        address: address.saturating_add(done),
    }
}

fn check_aligned(address: u64, width: Width) -> Result<(), MemoryError> {
    if address.is_multiple_of(width.bytes()) {
        Ok(())
    } else {
        Err(MemoryError::Misaligned { address, width })
    }
}

/// One operation on the atomic of each width, with its values as u64.
macro_rules! by_width {
    ($width:expr, $do:ident) => {
        match $width {
            Width::Byte => $do!(u8),
            Width::Word => $do!(u16),
            Width::Dword => $do!(u32),
            Width::Qword => $do!(u64),
        }
    };
}

impl<M: GuestMemoryBackend + Send + Sync> Memory for Ram<M> {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), MemoryError> {
        let read = self.0.read_slice(into, GuestAddress(address));
        read.map_err(|error| absent(address, &error))
    }

    fn write(&self, address: u64, from: &[u8]) -> Result<(), MemoryError> {
        let written = self.0.write_slice(from, GuestAddress(address));
        written.map_err(|error| absent(address, &error))
    }

    fn load(&self, address: u64, width: Width) -> Result<u64, MemoryError> {
        check_aligned(address, width)?;
        macro_rules! load {
            ($int:ty) => {
                self.0
                    .load::<$int>(GuestAddress(address), Ordering::Acquire)
                    .map(|value| u64::from(<$int>::from_le(value)))
            };
        }
        by_width!(width, load).map_err(|error| absent(address, &error))
    }

    #[expect(clippy::cast_possible_truncation, reason = "the low bytes are wanted")]
    fn store(&self, address: u64, width: Width, value: u64) -> Result<(), MemoryError> {
        check_aligned(address, width)?;
        macro_rules! store {
            ($int:ty) => {
                self.0.store(
                    (value as $int).to_le(),
                    GuestAddress(address),
                    Ordering::Release,
                )
            };
        }
        by_width!(width, store).map_err(|error| absent(address, &error))
    }

    #[expect(clippy::cast_possible_truncation, reason = "the low bytes are wanted")]
    fn compare_exchange(
        &self,
        address: u64,
        width: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, MemoryError> {
        check_aligned(address, width)?;
        let bytes = usize::try_from(width.bytes()).unwrap_or(usize::MAX);
        let slice = GuestMemoryBackend::get_slices(&*self.0, GuestAddress(address), bytes).next();
        let Some(Ok(slice)) = slice else {
            return Err(MemoryError::Absent { address });
        };
        macro_rules! exchange {
            ($int:ty) => {
                slice
                    .get_atomic_ref::<<$int as vm_memory::AtomicAccess>::A>(0)
                    .map(|there| {
                        let swapped = there.compare_exchange(
                            (current as $int).to_le(),
                            (new as $int).to_le(),
                            Ordering::AcqRel,
                            Ordering::Acquire,
                        );
                        let was = match swapped {
                            Ok(was) => {
                                slice.bitmap().mark_dirty(0, bytes);
                                was
                            }
                            Err(was) => was,
                        };
                        u64::from(<$int>::from_le(was))
                    })
            };
        }
        by_width!(width, exchange).map_err(|_| MemoryError::NotAtomic { address })
    }
}
