//! The messages of the protocol as they lie in the stream: the header and the
//! fixed part of each payload, in the byte order of the host.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of a header.
pub const HEADER: usize = size_of::<Header>();
/// The greatest count of a data transfer that a peer assumes if nothing is said.
pub const DEFAULT_TRANSFER: u32 = 1 << 20;
/// The number of mappings that a peer assumes if nothing is said.
pub const DEFAULT_MAPS: u32 = 65_535;
/// The page sizes that a peer assumes if nothing is said: 4 KiB.
pub const DEFAULT_PAGE_SIZES: u64 = 4096;

/// What a message asks for. vfio-user specification, "Commands".
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u16)]
#[allow(missing_docs)]
pub enum Command {
    Version = 1,
    DmaMap = 2,
    DmaUnmap = 3,
    DeviceGetInfo = 4,
    DeviceGetRegionInfo = 5,
    DeviceGetRegionIoFds = 6,
    DeviceGetIrqInfo = 7,
    DeviceSetIrqs = 8,
    RegionRead = 9,
    RegionWrite = 10,
    DmaRead = 11,
    DmaWrite = 12,
    DeviceReset = 13,
    /// In older revisions of the specification only.
    DirtyPages = 14,
    RegionWriteMulti = 15,
    DeviceFeature = 16,
    MigDataRead = 17,
    MigDataWrite = 18,
}

impl Command {
    /// The command with this number; `None` if the specification has none.
    pub fn from_number(number: u16) -> Option<Self> {
        Some(match number {
            1 => Self::Version,
            2 => Self::DmaMap,
            3 => Self::DmaUnmap,
            4 => Self::DeviceGetInfo,
            5 => Self::DeviceGetRegionInfo,
            6 => Self::DeviceGetRegionIoFds,
            7 => Self::DeviceGetIrqInfo,
            8 => Self::DeviceSetIrqs,
            9 => Self::RegionRead,
            10 => Self::RegionWrite,
            11 => Self::DmaRead,
            12 => Self::DmaWrite,
            13 => Self::DeviceReset,
            14 => Self::DirtyPages,
            15 => Self::RegionWriteMulti,
            16 => Self::DeviceFeature,
            17 => Self::MigDataRead,
            18 => Self::MigDataWrite,
            _ => return None,
        })
    }

    /// Its number.
    pub const fn number(self) -> u16 {
        self as u16
    }
}

/// Bits of [`Header::flags`].
pub mod flags {
    /// The bits that say what a message is.
    pub const TYPE: u32 = 0xf;
    /// A command.
    pub const COMMAND: u32 = 0;
    /// The reply to a command.
    pub const REPLY: u32 = 1;
    /// In a command: no reply is wanted.
    pub const NO_REPLY: u32 = 1 << 4;
    /// In a reply: the command failed, `error` says why.
    pub const ERROR: u32 = 1 << 5;
}

/// What every message begins with.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Header {
    /// Chosen by the sender of a command, repeated in its reply.
    pub id: u16,
    /// The number of a [`Command`].
    pub command: u16,
    /// Bytes of the whole message, header included.
    pub size: u32,
    /// See [`flags`].
    pub flags: u32,
    /// An errno, if the flags say so.
    pub error: u32,
}

macro_rules! payloads {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $kind:ty),* $(,)? })*) => {
        $(
            $(#[$doc])*
            #[derive(
                Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
            )]
            #[repr(C)]
            #[allow(missing_docs)]
            pub struct $name { $($(#[$field_doc])* pub $field: $kind),* }
        )*
    };
}

payloads! {
    /// Before the JSON of VERSION.
    Version { major: u16, minor: u16 }
    /// DMA_MAP.
    DmaMap { argsz: u32, flags: u32, offset: u64, address: u64, size: u64 }
    /// DMA_UNMAP.
    DmaUnmap { argsz: u32, flags: u32, address: u64, size: u64 }
    /// Behind DMA_UNMAP with [`UNMAP_GET_DIRTY`], and in DIRTY_PAGES.
    Bitmap { page_size: u64, size: u64 }
    /// DIRTY_PAGES of older revisions.
    DirtyPages { argsz: u32, flags: u32 }
    /// The range of DIRTY_PAGES with [`DIRTY_GET`]; a [`Bitmap`] follows.
    DirtyRange { address: u64, size: u64 }
    /// DEVICE_GET_INFO.
    DeviceInfo { argsz: u32, flags: u32, regions: u32, irqs: u32 }
    /// DEVICE_GET_REGION_INFO.
    RegionInfo { argsz: u32, flags: u32, index: u32, cap_offset: u32, size: u64, offset: u64 }
    /// The head of a capability in a region's information.
    CapHeader { id: u16, version: u16, next: u32 }
    /// The sparse-mmap capability behind its head.
    SparseMmap { areas: u32, reserved: u32 }
    /// An area of the sparse-mmap capability.
    SparseArea { offset: u64, size: u64 }
    /// The type capability behind its head.
    RegionType { kind: u32, subtype: u32 }
    /// DEVICE_GET_REGION_IO_FDS.
    RegionIoFds { argsz: u32, flags: u32, index: u32, count: u32 }
    /// A sub-region with its descriptor: `data` is what must be written for an
    /// eventfd, or what an ioregionfd gives back.
    SubRegion { offset: u64, size: u64, fd_index: u32, kind: u32, flags: u32, padding: u32, data: u64 }
    /// DEVICE_GET_IRQ_INFO.
    IrqInfo { argsz: u32, flags: u32, index: u32, count: u32 }
    /// DEVICE_SET_IRQS.
    SetIrqs { argsz: u32, flags: u32, index: u32, start: u32, count: u32 }
    /// REGION_READ and REGION_WRITE.
    RegionAccess { offset: u64, region: u32, count: u32 }
    /// DMA_READ and DMA_WRITE.
    DmaAccess { address: u64, count: u64 }
    /// REGION_WRITE_MULTI.
    WriteMulti { count: u64 }
    /// One write of REGION_WRITE_MULTI.
    SmallWrite { offset: u64, region: u32, count: u32, data: [u8; 8] }
    /// DEVICE_FEATURE.
    Feature { argsz: u32, flags: u32 }
    /// MIG_DATA_READ and MIG_DATA_WRITE.
    MigData { argsz: u32, size: u32 }
}

/// DMA_MAP: the device may read.
pub const MAP_READ: u32 = 1 << 0;
/// DMA_MAP: the device may write.
pub const MAP_WRITE: u32 = 1 << 1;
/// DMA_MAP, libvfio-user's: the descriptor may be mapped.
pub const MAP_MMAP: u32 = 1 << 2;
/// DMA_MAP, libvfio-user's: the descriptor may be read and written.
pub const MAP_FILE_IO: u32 = 1 << 3;

/// DMA_UNMAP: give the dirty pages of what is unmapped.
pub const UNMAP_GET_DIRTY: u32 = 1 << 0;
/// DMA_UNMAP: everything; address and size are 0.
pub const UNMAP_ALL: u32 = 1 << 1;

/// DIRTY_PAGES: begin to log.
pub const DIRTY_START: u32 = 1 << 0;
/// DIRTY_PAGES: end it.
pub const DIRTY_STOP: u32 = 1 << 1;
/// DIRTY_PAGES: give the bitmap of a range and clear it.
pub const DIRTY_GET: u32 = 1 << 2;

/// DEVICE_GET_INFO: the device can be reset.
pub const DEVICE_RESET: u32 = 1 << 0;
/// DEVICE_GET_INFO: it is a PCI function.
pub const DEVICE_PCI: u32 = 1 << 1;

/// DEVICE_GET_REGION_INFO: it can be read.
pub const REGION_READ: u32 = 1 << 0;
/// DEVICE_GET_REGION_INFO: it can be written.
pub const REGION_WRITE: u32 = 1 << 1;
/// DEVICE_GET_REGION_INFO: it can be mapped, the descriptor comes along.
pub const REGION_MMAP: u32 = 1 << 2;
/// DEVICE_GET_REGION_INFO: capabilities follow.
pub const REGION_CAPS: u32 = 1 << 3;
/// The capability that names the parts that can be mapped.
pub const CAP_SPARSE_MMAP: u16 = 1;
/// The capability that says what kind of device-specific region it is.
pub const CAP_TYPE: u16 = 2;

/// DEVICE_SET_IRQS: no data.
pub const IRQ_DATA_NONE: u32 = 1 << 0;
/// DEVICE_SET_IRQS: one byte an interrupt.
pub const IRQ_DATA_BOOL: u32 = 1 << 1;
/// DEVICE_SET_IRQS: one eventfd an interrupt, or none at all.
pub const IRQ_DATA_EVENTFD: u32 = 1 << 2;
/// DEVICE_SET_IRQS: mask.
pub const IRQ_ACTION_MASK: u32 = 1 << 3;
/// DEVICE_SET_IRQS: unmask.
pub const IRQ_ACTION_UNMASK: u32 = 1 << 4;
/// DEVICE_SET_IRQS: trigger.
pub const IRQ_ACTION_TRIGGER: u32 = 1 << 5;

/// DEVICE_FEATURE: the bits that name the feature.
pub const FEATURE_MASK: u32 = 0xffff;
/// DEVICE_FEATURE: get.
pub const FEATURE_GET: u32 = 1 << 16;
/// DEVICE_FEATURE: set.
pub const FEATURE_SET: u32 = 1 << 17;
/// DEVICE_FEATURE: ask whether it can be got, set.
pub const FEATURE_PROBE: u32 = 1 << 18;

/// A sub-region signalled by an eventfd.
pub const IO_FD_EVENT: u32 = 0;
/// A sub-region accessed through an ioregionfd.
pub const IO_FD_REGION: u32 = 1;
