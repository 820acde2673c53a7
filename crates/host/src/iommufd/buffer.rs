//! Buffers of a device's own memory, held by a descriptor and mapped by
//! IOMMU_IOAS_MAP_FILE, that their device may take back: parts of BARs, and
//! what an extension makes, which has no memory behind it. Linux
//! `drivers/vfio/pci/vfio_pci_dmabuf.c`; `drivers/iommu/iommufd/pages.c`,
//! `iopt_alloc_dmabuf_pages`, `iopt_revoke_notify`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use iogate_dma::{Iova, Rights};
use iogate_pci::{BarSpace, Life};
use iogate_space::Segment;

use crate::bars;
use crate::state::{File, State};
use crate::{Error, ErrorKind, FileId, FileKind, Host, Pages, Path, PinError, Pinned, Retired};

/// An open buffer.
#[derive(Debug)]
pub(crate) struct Buffer {
    length: u64,
    is_revoked: bool,
    /// Whose memory it is.
    source: Option<Source>,
    /// What is mapped of it.
    pages: Vec<Weak<BufferPages>>,
}

/// A part of a BAR, or several.
#[derive(Debug)]
struct Source {
    device: usize,
    /// The number of the first byte, if it is one part.
    output: Option<u64>,
    /// The device's life when that was last looked at.
    life: Life,
    /// The device was closed since: it never gives the buffer out again.
    is_over: bool,
}

/// A part of a buffer.
#[derive(Debug)]
struct BufferPages {
    start: u64,
    /// The number of the first byte; `None` without memory.
    output: Option<u64>,
    /// Taken back, for ever.
    is_gone: AtomicBool,
}

/// What is pinned of a buffer: nothing that could be let go.
struct Held(Vec<Segment>);

impl Pinned for Held {
    fn segments(&self) -> &[Segment] {
        &self.0
    }

    fn private(&self) -> &[(u64, u64)] {
        &[]
    }
}

impl Pages for BufferPages {
    fn pin(&self, offset: u64, length: u64, _: Rights) -> Result<Box<dyn Pinned>, PinError> {
        let output = self.output.filter(|_| !self.is_revoked());
        let output = output.and_then(|output| output.checked_add(offset));
        let segment = output.map(|output| Segment { length, output });
        Ok(Box::new(Held(segment.into_iter().collect())))
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

    fn is_revoked(&self) -> bool {
        self.is_gone.load(Ordering::SeqCst)
    }

    fn address_space(&self) -> u64 {
        0
    }
}

impl Host {
    /// A buffer of `length` bytes without memory: EINVAL for an empty one.
    pub fn buffer_create(&self, length: u64) -> Result<FileId, Error> {
        if length == 0 {
            return Err(Error::invalid("the buffer is empty"));
        }
        let buffer = Buffer {
            length,
            is_revoked: false,
            source: None,
            pages: Vec::new(),
        };
        Ok(self.enter_buffer(&mut self.lock(), buffer))
    }

    fn enter_buffer(&self, state: &mut State, buffer: Buffer) -> FileId {
        let file = self.enter(File {
            kind: FileKind::Buffer,
            path: Path::Cdev,
            usable: true,
        });
        state.buffers.insert(file, buffer);
        file
    }

    /// VFIO_DEVICE_FEATURE_DMA_BUF: a buffer of parts of a memory BAR, each an
    /// offset and a length. EINVAL without such a BAR, for no part, for an empty
    /// one and past the end; EOVERFLOW for one that wraps; EOPNOTSUPP for parts
    /// of BARs beyond 8 GiB. Linux `vfio_pci_core_feature_dma_buf`,
    /// `vfio_pci_core_fill_phys_vec`.
    pub fn export_bar(
        &self,
        device: usize,
        bar: u8,
        parts: &[(u64, u64)],
    ) -> Result<FileId, Error> {
        let slot = self.slot(device)?;
        let found = slot.endpoint().bar(bar);
        let found = found.filter(|bar| bar.space == BarSpace::Memory);
        let size = found
            .ok_or(Error::invalid("the device has no such memory"))?
            .size;
        let mut length = 0_u64;
        for (offset, part) in parts {
            let end = offset.checked_add(*part).ok_or(Error::new(
                ErrorKind::Overflow,
                "a part passes the top of the address space",
            ))?;
            if *part == 0 || end > size {
                return Err(Error::invalid("a part is empty or past the end of the BAR"));
            }
            length = length.saturating_add(*part);
        }
        let output = match parts {
            [] => return Err(Error::invalid("the buffer has no parts")),
            [(offset, length)] => {
                let end = bars::number(device, bar, offset.saturating_add(length.wrapping_sub(1)));
                let start = end.and_then(|_| bars::number(device, bar, *offset));
                Some(start.ok_or(UNSUPPORTED)?)
            }
            _ => None,
        };
        let mut state = self.lock();
        let buffer = Buffer {
            length,
            is_revoked: !slot.memory_answers(),
            source: Some(Source {
                device,
                output,
                life: slot.endpoint().life(),
                is_over: false,
            }),
            pages: Vec::new(),
        };
        let file = self.enter_buffer(&mut state, buffer);
        self.exports.store(true, Ordering::SeqCst);
        Ok(file)
    }

    /// Has a buffer's device take it back, or give it out again: EINVAL for
    /// another file. What is mapped stays so and ends nowhere either way.
    pub fn buffer_revoke(&self, file: FileId, revoked: bool) -> Result<(), Error> {
        let mut state = self.lock();
        state.buffer(file)?.is_revoked = revoked;
        Ok(())
    }

    /// A part of a buffer, to be mapped. EINVAL for another file or past the
    /// end, ENODEV while the buffer is taken back, EOPNOTSUPP for one of
    /// several parts of a BAR. Linux `vfio_pci_dma_buf_iommufd_map`.
    pub fn buffer_pages(
        &self,
        file: FileId,
        start: u64,
        length: u64,
    ) -> Result<Arc<dyn Pages>, Error> {
        let mut state = self.lock();
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
        let output = match &buffer.source {
            None => None,
            Some(source) => {
                let first = source.output.ok_or(UNSUPPORTED)?;
                first.checked_add(start)
            }
        };
        let pages = Arc::new(BufferPages {
            start,
            output,
            is_gone: AtomicBool::new(false),
        });
        buffer.pages.retain(|pages| pages.strong_count() > 0);
        buffer.pages.push(Arc::downgrade(&pages));
        Ok(pages)
    }

    /// Looks whether devices have taken back the parts of BARs that they gave
    /// out, by a reset, by their last close or because their memory does not
    /// answer: what is mapped of those is out of reach for good. Linux
    /// `vfio_pci_dma_buf_move`, `vfio_pci_dma_buf_cleanup`.
    pub(crate) fn look_at_exports(&self, retired: &mut Retired) {
        if self.exports.load(Ordering::SeqCst) {
            self.settle_exports(&mut self.lock(), retired);
        }
    }

    /// As [`look_at_exports`](Self::look_at_exports), with the state at hand.
    pub(crate) fn settle_exports(&self, state: &mut State, retired: &mut Retired) {
        let mut is_any_gone = false;
        for buffer in state.buffers.values_mut() {
            let Some(source) = &mut buffer.source else {
                continue;
            };
            let Ok(slot) = self.slot(source.device) else {
                continue;
            };
            source.is_over |= slot.lock().opens == 0;
            let answers = slot.memory_answers() && !source.is_over;
            let life = slot.endpoint().life();
            if life != source.life || !answers {
                source.life = life;
                for pages in buffer.pages.drain(..).filter_map(|pages| pages.upgrade()) {
                    pages.is_gone.store(true, Ordering::SeqCst);
                    is_any_gone = true;
                }
            }
            buffer.is_revoked = !answers;
        }
        if is_any_gone {
            self.clear_revoked(state, retired);
        }
    }

    /// Takes revoked pages out of devices' reach; the mappings stay.
    fn clear_revoked(&self, state: &mut State, retired: &mut Retired) {
        let State {
            iommufds, private, ..
        } = state;
        let mut pages = Vec::new();
        for ioas in iommufds.values().flat_map(|one| one.objects.ioases()) {
            let revoked = ioas.areas().filter_map(|(span, _)| {
                let is_gone = ioas.space.space().with_area(span.first(), |area| {
                    area.payload.is_pinned() && area.payload.pages.is_revoked()
                });
                (is_gone == Some(true)).then(|| span.first())
            });
            let revoked: Vec<Iova> = revoked.collect();
            for first in revoked {
                pages.extend(ioas.space.clear(private, first));
            }
        }
        retired.merge(self.retire(pages));
    }
}

const UNSUPPORTED: Error = Error::new(
    ErrorKind::Unsupported,
    "only one part of a BAR can be mapped",
);

impl State {
    fn buffer(&mut self, file: FileId) -> Result<&mut Buffer, Error> {
        let buffer = self.buffers.get_mut(&file);
        buffer.ok_or(Error::invalid("the descriptor is no buffer"))
    }
}
