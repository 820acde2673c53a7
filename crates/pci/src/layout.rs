//! How the configuration space of an endpoint is laid out when it is built.

use std::sync::Arc;

use iogate_dma::{Interrupts, SharedMemory, Source};

use crate::config::{ConfigSpace, capability, extended, register, status};
use crate::endpoint::Parts;
use crate::sriov::SrIov;
use crate::{Bar, BarSpace, BarWidth, Command, Endpoint};

/// The identification registers of a function.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Subsystem Vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
    /// Class Code, 24 bits: base class, sub-class, interface from high to low.
    pub class: u32,
    /// Revision ID.
    pub revision: u8,
}

/// The MSI capability, always with 64-bit addresses. PCI Local Bus 3.0
/// section 6.8.1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Msi {
    /// Vectors: 1, 2, 4, 8, 16 or 32.
    pub vectors: u8,
    /// Per-vector mask and pending bits.
    pub maskable: bool,
}

impl Default for Msi {
    fn default() -> Self {
        Self {
            vectors: 1,
            maskable: false,
        }
    }
}

/// The MSI-X capability. PCI Local Bus 3.0 section 6.8.2.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MsixLayout {
    /// Vectors, 1-2048.
    pub vectors: u16,
    /// The BAR of the table.
    pub table_bar: u8,
    /// The table's offset in its BAR, a multiple of 8.
    pub table_offset: u32,
    /// The BAR of the Pending Bit Array.
    pub pba_bar: u8,
    /// The array's offset in its BAR, a multiple of 8.
    pub pba_offset: u32,
}

/// Bytes of one MSI-X table entry.
pub(crate) const ENTRY: u64 = 16;

impl MsixLayout {
    /// Bytes of the table.
    pub fn table_size(&self) -> u64 {
        u64::from(self.vectors).saturating_mul(ENTRY)
    }

    /// Bytes of the Pending Bit Array: whole 64-bit words.
    pub fn pba_size(&self) -> u64 {
        u64::from(self.vectors).div_ceil(64).saturating_mul(8)
    }
}

/// Why an endpoint cannot be laid out: a mistake in the model.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LayoutError {
    /// A BAR with a size or an index that registers cannot express.
    #[error("BAR {0} has an impossible size or index")]
    Bar(u8),
    /// Two BARs share a register.
    #[error("BAR {0} is defined twice")]
    BarTwice(u8),
    /// A second BAR of plain memory: programs map all of a function by one
    /// file.
    #[error("BAR {0} is a second one of plain memory")]
    MemoryTwice(u8),
    /// The MSI capability's number of vectors.
    #[error("MSI cannot have {0} vectors")]
    Msi(u8),
    /// The MSI-X structures do not fit where they are said to be.
    #[error("the MSI-X table or pending bits do not fit in their BARs")]
    Msix,
    /// Capabilities reach beyond byte 256, or a second one of a kind.
    #[error("capability {0:#x} does not fit")]
    Capability(u8),
    /// Extended capabilities reach beyond byte 4096.
    #[error("extended capability {0:#x} does not fit")]
    Extended(u16),
}

/// Builds an [`Endpoint`]. Capabilities stand in configuration space in the
/// order in which they are added.
#[derive(Clone)]
pub struct Builder {
    config: ConfigSpace,
    bars: [Option<Bar>; 6],
    memory: Option<(u8, Arc<dyn SharedMemory>)>,
    msix: Option<MsixLayout>,
    sr_iov: Option<SrIov>,
    pasid: Option<(u16, u8)>,
    /// Where the next capability goes, and the byte that will point to it.
    next: u16,
    link: u16,
    extended: u16,
    last_extended: Option<u16>,
    error: Option<LayoutError>,
}

impl Builder {
    pub(crate) fn new(identity: Identity) -> Self {
        let mut config = ConfigSpace::new();
        let [c0, c1, c2, _] = identity.class.to_le_bytes();
        config.define(register::VENDOR, &identity.vendor.to_le_bytes(), &[]);
        config.define(register::DEVICE, &identity.device.to_le_bytes(), &[]);
        let command = Command::MEMORY | Command::MASTER | Command::INTX_DISABLE;
        // Parity Error Response and SERR# Enable hold what is written.
        let command = command | 1 << 6 | 1 << 8;
        config.define(register::COMMAND, &[0; 2], &command.to_le_bytes());
        // Received and signalled errors: never set here, but clearable.
        config.define_clearable(register::STATUS.saturating_add(1), 0xf9);
        config.define(register::REVISION, &[identity.revision, c0, c1, c2], &[]);
        config.define(register::CACHE_LINE, &[0], &[0xff]);
        let subsystem = identity.subsystem_vendor.to_le_bytes();
        config.define(register::SUBSYSTEM_VENDOR, &subsystem, &[]);
        config.define(register::SUBSYSTEM, &identity.subsystem.to_le_bytes(), &[]);
        config.define(register::INTERRUPT_LINE, &[0], &[0xff]);
        Self {
            config,
            bars: [None; 6],
            memory: None,
            msix: None,
            sr_iov: None,
            pasid: None,
            next: register::AFTER_HEADER,
            link: register::CAPABILITIES,
            extended: register::EXTENDED,
            last_extended: None,
            error: None,
        }
    }

    fn fail(mut self, error: LayoutError) -> Self {
        self.error.get_or_insert(error);
        self
    }

    /// Adds a BAR.
    pub fn bar(mut self, bar: Bar) -> Self {
        if !bar.is_valid() {
            return self.fail(LayoutError::Bar(bar.index));
        }
        let registers = match bar.width {
            BarWidth::Bits32 => 1,
            BarWidth::Bits64 => 2,
        };
        let clash = self.bars.iter().flatten().any(|other| {
            let low = other.index.max(bar.index);
            let other_end = other.index.saturating_add(match other.width {
                BarWidth::Bits32 => 1,
                BarWidth::Bits64 => 2,
            });
            low < other_end && low < bar.index.saturating_add(registers)
        });
        if clash {
            return self.fail(LayoutError::BarTwice(bar.index));
        }
        if bar.space == BarSpace::Io {
            let command = self.config.get16(register::COMMAND);
            self.config.define(
                register::COMMAND,
                &command.to_le_bytes(),
                &(Command::IO
                    | Command::MEMORY
                    | Command::MASTER
                    | Command::INTX_DISABLE
                    | 1 << 6
                    | 1 << 8)
                    .to_le_bytes(),
            );
        }
        let at = register::BAR0.saturating_add(u16::from(bar.index).saturating_mul(4));
        // Address bits below the size are read-only zero: writing ones and
        // reading back gives the size.
        let address = !bar.size.saturating_sub(1);
        let flags = u64::from(bar.flags());
        let bytes: usize = match bar.width {
            BarWidth::Bits32 => 4,
            BarWidth::Bits64 => 8,
        };
        self.config.define(
            at,
            flags.to_le_bytes().get(..bytes).unwrap_or_default(),
            &address.to_le_bytes(),
        );
        if let Some(slot) = self.bars.get_mut(usize::from(bar.index)) {
            *slot = Some(bar);
        }
        self
    }

    /// Adds a BAR that is `memory`, of which there are as many bytes as the BAR
    /// has. Programs may map it; what reaches the model of it by
    /// [`Function::read_bar`](crate::Function::read_bar) and `write_bar` is for
    /// [`Endpoint::read_memory`] and [`Endpoint::write_memory`].
    pub fn memory_bar(mut self, bar: Bar, memory: Arc<dyn SharedMemory>) -> Self {
        if self.memory.is_some() {
            return self.fail(LayoutError::MemoryTwice(bar.index));
        }
        self.memory = Some((bar.index, memory));
        self.bar(bar.mappable())
    }

    /// Gives the function the INTA pin.
    pub fn pin_a(mut self) -> Self {
        self.config.define(register::INTERRUPT_PIN, &[1], &[]);
        self
    }

    /// Adds a capability: `body` is what follows the id and the next pointer,
    /// `writable` the bits of it that software may write.
    pub fn capability(mut self, id: u8, body: &[u8], writable: &[u8]) -> Self {
        let at = self.next;
        let end = u16::try_from(body.len())
            .ok()
            .and_then(|length| at.checked_add(2)?.checked_add(length))
            .filter(|end| *end <= register::EXTENDED);
        let (Some(end), Ok(here)) = (end, u8::try_from(at)) else {
            return self.fail(LayoutError::Capability(id));
        };
        if self.config.capability(id).is_some() && id != capability::VENDOR {
            return self.fail(LayoutError::Capability(id));
        }
        self.config.define(self.link, &[here], &[]);
        self.config
            .define(register::STATUS, &[status::CAPABILITIES], &[]);
        self.config.define(at, &[id, 0], &[]);
        self.config.define(at.saturating_add(2), body, writable);
        self.link = at.saturating_add(1);
        self.next = end.next_multiple_of(4);
        self
    }

    /// Adds an extended capability, as [`capability`](Self::capability) does;
    /// `body` follows the 4-byte header.
    pub fn extended_capability(mut self, id: u16, version: u8, body: &[u8]) -> Self {
        let at = self.extended;
        let end = u16::try_from(body.len())
            .ok()
            .and_then(|length| at.checked_add(4)?.checked_add(length))
            .filter(|end| *end <= 4096);
        let Some(end) = end else {
            return self.fail(LayoutError::Extended(id));
        };
        if let Some(last) = self.last_extended {
            let header = self.config.get32(last) & 0x000f_ffff | u32::from(at) << 20;
            self.config.define(last, &header.to_le_bytes(), &[]);
        }
        let header = u32::from(id) | (u32::from(version) & 0xf) << 16;
        self.config.define(at, &header.to_le_bytes(), &[]);
        self.config.define(at.saturating_add(4), body, &[]);
        self.last_extended = Some(at);
        self.extended = end.next_multiple_of(4);
        self
    }

    /// Adds Power Management: D0 and D3hot, no PME, state kept in D3hot.
    /// PCI Bus Power Management 1.2 section 3.2.
    pub fn power_management(self) -> Self {
        // PMC version 3; PMCSR with No_Soft_Reset; PowerState writable.
        let body = [0x03, 0x00, 0x08, 0x00, 0x00, 0x00];
        self.capability(capability::POWER_MANAGEMENT, &body, &[0, 0, 0x03])
    }

    /// Adds PCI Express: an endpoint on a 2.5 GT/s x1 link that supports
    /// Function Level Reset. PCI Express Base 6.0 section 7.5.3.
    pub fn express(mut self) -> Self {
        let mut body = [0_u8; 58];
        let mut writable = [0_u8; 58];
        let mut put = |at: usize, value: &[u8], mask: &[u8]| {
            let cells = body.iter_mut().zip(&mut writable).skip(at);
            for (index, ((byte, bits), new)) in cells.zip(value).enumerate() {
                *byte = *new;
                *bits = mask.get(index).copied().unwrap_or(0);
            }
        };
        // Offsets are those of the capability, less 2.
        put(0x00, &0x0002_u16.to_le_bytes(), &[]);
        put(0x02, &(1_u32 << 28 | 1 << 15).to_le_bytes(), &[]);
        // Relaxed Ordering, No Snoop, 512-byte reads; bit 15 asks for a reset
        // and reads as 0.
        put(0x06, &0x2810_u16.to_le_bytes(), &0x7fff_u16.to_le_bytes());
        put(0x08, &[0, 0], &[]);
        put(0x0a, &0x0000_0011_u32.to_le_bytes(), &[]);
        put(0x0e, &[0, 0], &[0xfb, 0x0f]);
        put(0x10, &0x0011_u16.to_le_bytes(), &[]);
        put(0x22, &0_u32.to_le_bytes(), &[]);
        put(0x26, &[0, 0], &[0x1f, 0]);
        put(0x2a, &0x0000_0002_u32.to_le_bytes(), &[]);
        put(0x2e, &[0x01, 0], &[0x0f, 0]);
        let at = self.next;
        self = self.capability(capability::EXPRESS, &body, &writable);
        // Device Status: the error bits.
        self.config.define_clearable(at.saturating_add(0x0a), 0x0f);
        self
    }

    /// Adds MSI.
    pub fn msi(self, msi: Msi) -> Self {
        if !msi.vectors.is_power_of_two() || msi.vectors > 32 {
            return self.fail(LayoutError::Msi(msi.vectors));
        }
        let [offered, _, _, _] = msi.vectors.trailing_zeros().to_le_bytes();
        // 64-bit capable.
        let control = 1 << 7 | offered << 1;
        let mut body = vec![control, u8::from(msi.maskable)];
        // Enable and Multiple Message Enable.
        let mut writable = vec![0x71, 0, 0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
        writable.extend([0xff, 0xff]);
        body.resize(12, 0);
        if msi.maskable {
            let vectors = u32::MAX >> 32_u32.saturating_sub(msi.vectors.into());
            // Data takes 4 bytes here, of which the upper two are reserved.
            body.resize(22, 0);
            writable.extend([0, 0]);
            writable.extend(vectors.to_le_bytes());
        }
        self.capability(capability::MSI, &body, &writable)
    }

    /// Adds MSI-X. The BARs of its structures are to be added before.
    pub fn msix(mut self, layout: MsixLayout) -> Self {
        let fits = |bar: u8, offset: u32, size: u64| {
            let end = u64::from(offset).saturating_add(size);
            let bar = self.bars.get(usize::from(bar)).copied().flatten();
            offset.is_multiple_of(8) && bar.is_some_and(|bar| end <= bar.size)
        };
        let table = u64::from(layout.table_offset);
        let pba = u64::from(layout.pba_offset);
        let apart = layout.table_bar != layout.pba_bar
            || table.saturating_add(layout.table_size()) <= pba
            || pba.saturating_add(layout.pba_size()) <= table;
        if !(1..=2048).contains(&layout.vectors)
            || !fits(layout.table_bar, layout.table_offset, layout.table_size())
            || !fits(layout.pba_bar, layout.pba_offset, layout.pba_size())
            || !apart
        {
            return self.fail(LayoutError::Msix);
        }
        self.msix = Some(layout);
        let mut body = Vec::with_capacity(10);
        body.extend(layout.vectors.saturating_sub(1).to_le_bytes());
        body.extend((layout.table_offset | u32::from(layout.table_bar)).to_le_bytes());
        body.extend((layout.pba_offset | u32::from(layout.pba_bar)).to_le_bytes());
        // MSI-X Enable and Function Mask.
        self.capability(capability::MSIX, &body, &[0, 0xc0])
    }

    /// Adds Alternative Routing-ID Interpretation, for a function whose device
    /// has no next one to be found by it. PCI Express Base 6.0 section 7.8.8.
    pub fn ari(self) -> Self {
        self.extended_capability(extended::ARI, 1, &[0; 4])
    }

    /// Adds SR-IOV: up to `total` virtual functions (at least 1) with this
    /// device id, `offset` requester ids from here and `stride` from each
    /// other, each with these memory BARs, of whole pages. Software enables
    /// them by [`Endpoint::enable_virtual_functions`] only.
    pub fn sr_iov(
        mut self,
        (total, offset, stride): (u16, u16, u16),
        device: u16,
        bars: &[Bar],
    ) -> Self {
        let at = self.extended;
        let whole = |bar: &&Bar| {
            bar.is_valid() && bar.space == BarSpace::Memory && bar.size.is_multiple_of(4096)
        };
        if let Some(wrong) = bars.iter().find(|bar| !whole(bar)) {
            return self.fail(LayoutError::Bar(wrong.index));
        }
        self.sr_iov = Some(SrIov::new(at, total, bars));
        let body = SrIov::body((total, offset, stride), device, bars);
        self.extended_capability(extended::SR_IOV, 1, &body)
    }

    /// Adds PASID, with PASIDs of up to `width` bits (1-20), after PCI Express:
    /// requests carry one in a prefix, which ports pass end to end. PCI Express
    /// Base 6.0 section 7.8.9. Only [`Endpoint::enable_pasids`] enables it.
    pub fn pasid(mut self, width: u8) -> Self {
        let express = self.config.capability(capability::EXPRESS);
        let (Some(express), 1..=20) = (express, width) else {
            return self.fail(LayoutError::Extended(extended::PASID));
        };
        // Device Capabilities 2: End-End TLP Prefix Supported, at most one.
        let at = express.saturating_add(0x24);
        let able = self.config.get32(at) | 1 << 21 | 1 << 22;
        self.config.define(at, &able.to_le_bytes(), &[]);
        self.pasid = Some((self.extended, width));
        self.extended_capability(extended::PASID, 1, &[0, width, 0, 0])
    }

    /// The endpoint at `source`, whose interrupts go to `interrupts`.
    pub fn build(
        self,
        source: Source,
        interrupts: Arc<dyn Interrupts>,
    ) -> Result<Endpoint, LayoutError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        let mut config = self.config;
        if let Some(sr_iov) = &self.sr_iov {
            sr_iov.link(&mut config, source.requester.function());
        }
        Ok(Endpoint::from_parts(Parts {
            source,
            interrupts,
            config,
            bars: self.bars,
            memory: self.memory,
            msix: self.msix,
            sr_iov: self.sr_iov,
            pasid: self.pasid,
        }))
    }
}
