//! What is served: a device as the protocol sees it.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use iogate_dma::{Iova, Rights, Span};
use rustix::io::Errno;

use crate::peer::Peer;

/// A device that clients use through a [`Server`](crate::Server).
///
/// Every method runs on the thread that serves the client. An `Err` goes to
/// the client as the errno of the reply. Messages are checked before they come
/// here: offsets, counts and indices lie within what [`info`](Self::info),
/// [`region`](Self::region) and [`irq`](Self::irq) say.
///
/// No method may wait for the client: it may be waiting for the answer. The
/// requests of [`Peer`] that wait refuse to be called from here
/// ([`Error::WithinAnswer`](crate::Error::WithinAnswer)); those that do not
/// wait may be called. A device may ask another server, as a
/// [`Client`](crate::Client) of it.
pub trait Device: Send + Sync {
    /// A client negotiated its version and will send requests. An error closes
    /// the connection: a device that takes one client at a time refuses so.
    fn connected(&self, client: &Arc<Peer>) -> Result<(), Errno> {
        let _ = client;
        Ok(())
    }

    /// The client is gone. [`dma_unmap`](Self::dma_unmap) was called for
    /// whatever it had mapped; eventfds it gave are to be closed, the rest of the
    /// device stays as it is.
    fn disconnected(&self, client: &Peer) {
        let _ = client;
    }

    /// What the device is.
    fn info(&self) -> DeviceInfo;

    /// What region `index`, below `info().regions`, is.
    fn region(&self, index: u32) -> Result<Region<'_>, Errno>;

    /// Fills `into` from `offset` of a region.
    fn region_read(&self, region: u32, offset: u64, into: &mut [u8]) -> Result<(), Errno>;

    /// Writes `from` to `offset` of a region.
    fn region_write(&self, region: u32, offset: u64, from: &[u8]) -> Result<(), Errno>;

    /// Descriptors by which a region can be accessed past the client.
    fn region_io(&self, index: u32) -> Result<RegionIo<'_>, Errno> {
        let _ = index;
        Ok(RegionIo::default())
    }

    /// What interrupt type `index`, below `info().irqs`, is.
    fn irq(&self, index: u32) -> Result<Irq, Errno>;

    /// Does something to interrupts, or binds them to eventfds.
    fn set_irqs(&self, client: &Peer, set: SetIrqs<'_>) -> Result<(), Errno>;

    /// Memory of the client that the device may access from now on. It
    /// overlaps nothing that `client` has mapped.
    fn dma_map(&self, client: &Arc<Peer>, map: DmaMap) -> Result<(), Errno>;

    /// `span`, exactly as it was mapped, is the client's again: when this
    /// returns, nothing accesses it any more.
    fn dma_unmap(&self, client: &Peer, span: Span<Iova>);

    /// Puts the device into its initial state.
    fn reset(&self, client: &Peer) -> Result<(), Errno>;

    /// Gets, sets or probes feature `index` (`VFIO_DEVICE_FEATURE_*` of
    /// `linux/vfio.h`). What is to be given back goes into `reply`, at most
    /// `call.room` bytes.
    fn feature(
        &self,
        client: &Peer,
        call: FeatureCall<'_>,
        reply: &mut Vec<u8>,
    ) -> Result<(), Errno> {
        let _ = (client, call, reply);
        Err(Errno::NOTTY)
    }

    /// Fills `into` with the next bytes of the device's state; fewer than it
    /// holds mean that there are no more.
    fn migration_read(&self, into: &mut [u8]) -> Result<usize, Errno> {
        let _ = into;
        Err(Errno::NOTSUP)
    }

    /// Takes the next bytes of the device's state.
    fn migration_write(&self, from: &[u8]) -> Result<(), Errno> {
        let _ = from;
        Err(Errno::NOTSUP)
    }

    /// Begins or ends to log which pages the device writes.
    fn log_dirty(&self, client: &Peer, on: bool) -> Result<(), Errno> {
        let _ = (client, on);
        Err(Errno::NOTSUP)
    }

    /// Sets the bit of each page of `page_size` bytes in `span`, from bit 0 of
    /// byte 0 on, that the device wrote since it was asked before.
    fn dirty(
        &self,
        client: &Peer,
        span: Span<Iova>,
        page_size: u64,
        bitmap: &mut [u8],
    ) -> Result<(), Errno> {
        let _ = (client, span, page_size, bitmap);
        Err(Errno::NOTSUP)
    }
}

/// What a device is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceInfo {
    /// Number of regions; 9 or more for PCI (`VFIO_PCI_NUM_REGIONS`).
    pub regions: u32,
    /// Number of interrupt types; 5 for PCI (`VFIO_PCI_NUM_IRQS`).
    pub irqs: u32,
    /// Whether DEVICE_RESET does something.
    pub reset: bool,
    /// Whether it is a PCI function; the specification knows no other yet.
    pub pci: bool,
}

/// A region of a device. Of size 0 it does not exist.
#[derive(Clone, Debug, Default)]
pub struct Region<'device> {
    /// Its size in bytes.
    pub size: u64,
    /// What accesses it takes.
    pub rights: Rights,
    /// The file that holds it and where it begins there, if clients can map it.
    pub file: Option<(BorrowedFd<'device>, u64)>,
    /// The parts that can be mapped: offset and size; all of it if this is
    /// empty.
    pub areas: Vec<(u64, u64)>,
    /// Type and subtype of a device-specific region.
    pub kind: Option<(u32, u32)>,
}

/// Descriptors by which a region can be accessed past the client.
#[derive(Clone, Debug, Default)]
pub struct RegionIo<'device> {
    /// What goes through which of them.
    pub parts: Vec<SubRegion>,
    /// The descriptors.
    pub files: Vec<BorrowedFd<'device>>,
}

/// A part of a region that is accessed through a descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SubRegion {
    /// Where it begins in the region.
    pub offset: u64,
    /// Its size; 0 where the size of an access does not matter.
    pub size: u64,
    /// The index of its descriptor; several may share one.
    pub file: u32,
    /// What the descriptor is.
    pub kind: IoKind,
    /// `KVM_IOEVENTFD_FLAG_*` or `KVM_IOREGION_*`.
    pub flags: u32,
}

/// How a descriptor of a region is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IoKind {
    /// An eventfd, signalled by a write of this value, or of any.
    Event {
        /// What must be written, if the flags say so.
        datamatch: u64,
    },
    /// An ioregionfd.
    Region {
        /// What its messages carry.
        user_data: u64,
    },
}

/// An interrupt type of a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Irq {
    /// How many interrupts it has.
    pub count: u32,
    /// `VFIO_IRQ_INFO_*`: bit 0 eventfd, 1 maskable, 2 automasked, 3 noresize.
    pub flags: u32,
}

/// What is to be done to interrupts.
#[derive(Debug)]
pub struct SetIrqs<'message> {
    /// The interrupt type.
    pub index: u32,
    /// The first of its interrupts.
    pub start: u32,
    /// How many, `start` + `count` at most what the type has. 0, with `start` 0
    /// and no data, disables the type.
    pub count: u32,
    /// What is to be done.
    pub action: IrqAction,
    /// To which, or by what.
    pub data: IrqData<'message>,
}

/// What is done to an interrupt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IrqAction {
    /// It is masked.
    Mask,
    /// It is unmasked.
    Unmask,
    /// It is raised.
    Trigger,
}

/// Which interrupts are meant.
#[derive(Debug)]
pub enum IrqData<'message> {
    /// All of them.
    None,
    /// Those whose byte is not 0; one byte each.
    Bool(&'message [u8]),
    /// Each gets its eventfd, signalled when the action happens; without any
    /// they lose those that they have.
    Eventfds(Vec<OwnedFd>),
}

/// Memory of a client.
#[derive(Debug)]
pub struct DmaMap {
    /// The device's addresses of it.
    pub span: Span<Iova>,
    /// What the device may do there.
    pub rights: Rights,
    /// The file that holds it, and the offset at which it begins. Nothing
    /// about it is checked: it may be shorter, and may shrink at any time.
    /// Without one it is accessed by [`Peer::dma_read`] and
    /// [`Peer::dma_write`].
    pub file: Option<(OwnedFd, u64)>,
}

/// A call of [`Device::feature`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FeatureCall<'message> {
    /// The feature's index.
    pub index: u16,
    /// What is to be done.
    pub operation: FeatureOperation,
    /// What came with the request.
    pub data: &'message [u8],
    /// How many bytes the answer may have.
    pub room: usize,
}

/// What is done with a feature.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FeatureOperation {
    /// Its data is given.
    Get,
    /// Its data is set; the reply repeats the request unless something else is
    /// put there.
    Set,
    /// Nothing is done; success means that it could be.
    Probe {
        /// Whether getting is asked about.
        get: bool,
        /// Whether setting is asked about.
        set: bool,
    },
}
