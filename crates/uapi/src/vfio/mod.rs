//! The calls on `/dev/vfio/vfio`, on groups and on devices.
//!
//! | file | calls |
//! |---|---|
//! | `argument` | how arguments are read and chains of capabilities written |
//! | `container` | GET_API_VERSION, CHECK_EXTENSION, SET_IOMMU |
//! | `type1` | IOMMU_GET_INFO, IOMMU_MAP_DMA, IOMMU_UNMAP_DMA |
//! | `dirty` | IOMMU_DIRTY_PAGES and the bitmap of an unmap |
//! | `group` | GROUP_GET_STATUS, SET_CONTAINER, UNSET_CONTAINER, GET_DEVICE_FD |
//! | `device` | DEVICE_GET_INFO, GET_REGION_INFO, GET_IRQ_INFO, IOEVENTFD |
//! | `irqs` | DEVICE_SET_IRQS |
//! | `reset` | DEVICE_RESET, GET_PCI_HOT_RESET_INFO, PCI_HOT_RESET |
//! | `feature` | DEVICE_FEATURE |
//! | `dma_buf` | its part with buffers of BARs |
//! | `migration` | its features of migration, and MIG_GET_PRECOPY_INFO |
//! | `logging` | its features of DMA logging |

pub(crate) mod argument;
pub(crate) mod container;
pub(crate) mod device;
mod dirty;
mod dma_buf;
mod feature;
pub(crate) mod group;
mod irqs;
mod logging;
pub(crate) mod migration;
mod reset;
pub(crate) mod type1;

use iogate_host::{Descriptors, Event, FileId, Host, Watch};
use iogate_interrupt::Signal;
use std::sync::Arc;

use crate::{Answer, Client, Errno};

/// `_IO(';', 100 + n)`. include/uapi/linux/vfio.h, VFIO_TYPE, VFIO_BASE.
pub(crate) const fn number(n: u32) -> u32 {
    0x3b00 | 100_u32.saturating_add(n)
}

/// One call: where it is made, and with what.
pub(crate) struct Call<'c> {
    pub(crate) host: &'c Host,
    pub(crate) file: FileId,
    pub(crate) argument: u64,
    pub(crate) client: &'c dyn Client,
}

/// The descriptors of the calling process.
struct Fds<'c>(&'c dyn Client);

impl Descriptors for Fds<'_> {
    type Error = Errno;

    fn eventfd(&self, fd: i32) -> Result<Arc<dyn Signal>, Errno> {
        self.0.eventfd(fd)
    }

    fn watch(&self, fd: i32, event: Event) -> Result<Box<dyn Watch>, Errno> {
        self.0.watch(fd, event)
    }
}

/// A number that the file does not know.
pub(crate) fn unknown(file: FileId, command: u32, errno: Errno) -> Result<Answer, Errno> {
    tracing::event!(
        name: "ioctl_unknown",
        target: "iogate",
        tracing::Level::INFO,
        file = file.0,
        command = format_args!("{command:#x}"),
        result = %errno,
    );
    Err(errno)
}

/// Tells the trace of a call and passes its result on.
macro_rules! told {
    ($name:literal, $call:expr, $result:expr $(, $field:ident = $value:expr)* $(,)?) => {{
        let result = $result;
        tracing::event!(
            name: $name,
            target: "iogate",
            tracing::Level::INFO,
            file = $call.file.0,
            $($field = $value,)*
            result = %crate::trace::Told(&result),
        );
        result
    }};
}
pub(crate) use told;
