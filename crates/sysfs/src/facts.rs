//! What sysfs shows of one function, read from its configuration space.
use crate::sriov::SrIovFacts;
use iogate_machine::FunctionEntry;
use iogate_pci::topology::bridge_config;

/// One line of a function's `resource` file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Resource {
    /// Address of the first byte.
    pub start: u64,
    /// Address of the last byte.
    pub end: u64,
    /// `IORESOURCE_*` of Linux include/linux/ioport.h; 0 if there is no such
    /// resource. Programs look for 0x100 (I/O ports), 0x200 (memory), 0x2000
    /// (prefetchable) and 0x100000 (64 bits wide).
    pub flags: u64,
}

impl Resource {
    /// Memory, 32 bits wide, not prefetchable.
    pub const MEMORY: u64 = 0x200;
    /// I/O ports.
    pub const IO: u64 = 0x100;
    /// Set with [`MEMORY`](Self::MEMORY): reads have no side effect.
    pub const PREFETCHABLE: u64 = 0x2000;
    /// Set with [`MEMORY`](Self::MEMORY): two BARs wide.
    pub const WIDE: u64 = 0x10_0000;
}

/// What a function shows when sysfs is built.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FunctionFacts {
    /// Configuration space, 256 or 4096 bytes; missing bytes read as 0.
    pub config: Vec<u8>,
    /// The six BARs and the expansion ROM.
    pub resources: [Resource; 7],
    /// Number of its interrupt line; 0 if there is none.
    pub irq: u32,
    /// NUMA node; -1 if there is none.
    pub numa_node: i32,
    /// Whether it is there.
    pub presence: Presence,
    /// For a physical function with virtual ones.
    pub sr_iov: Option<SrIovFacts>,
}

/// Whether a function is there.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Presence {
    /// It is, and has its driver if it has any.
    #[default]
    Present,
    /// It is, but has no driver.
    Unbound,
    /// Its driver is letting go of it: programs cannot open it any more.
    Leaving,
    /// It is not.
    Absent,
}

/// Offset of the capability pointer in a type 0 or 1 header.
const CAPABILITY_POINTER: usize = 0x34;
/// Capability id of the PCI Express capability.
const EXPRESS: u8 = 0x10;

impl FunctionFacts {
    /// A bridge at rest, or what has no configuration space.
    pub fn of_bridge(entry: &FunctionEntry) -> Self {
        Self {
            config: bridge_config(&entry.placed),
            resources: [Resource::default(); 7],
            irq: 0,
            numa_node: -1,
            presence: Presence::Present,
            sr_iov: None,
        }
    }

    pub(crate) fn byte(&self, offset: usize) -> u8 {
        self.config.get(offset).copied().unwrap_or(0)
    }

    pub(crate) fn word(&self, offset: usize) -> u16 {
        let high = offset.saturating_add(1);
        u16::from_le_bytes([self.byte(offset), self.byte(high)])
    }

    /// Class, subclass and programming interface.
    pub(crate) fn class(&self) -> u32 {
        u32::from_be_bytes([0, self.byte(0x0b), self.byte(0x0a), self.byte(0x09)])
    }

    pub(crate) fn is_bridge(&self) -> bool {
        self.byte(0x0e) & 0x7f == 1
    }

    /// Subsystem vendor and device; bridges have them in a capability that
    /// ours do not have.
    pub(crate) fn subsystem(&self) -> (u16, u16) {
        if self.is_bridge() {
            return (0, 0);
        }
        (self.word(0x2c), self.word(0x2e))
    }

    /// Whether its driver has it.
    pub(crate) fn has_driver(&self) -> bool {
        matches!(self.presence, Presence::Present | Presence::Leaving)
    }

    /// The offset of an extended capability. PCI Express Base 6.0 section
    /// 7.6.3.
    pub(crate) fn extended(&self, id: u16) -> Option<usize> {
        const FIRST: usize = 0x100;
        const MOST: usize = 480;
        let mut at = FIRST;
        for _ in 0..MOST {
            if self.word(at) == id {
                return Some(at);
            }
            at = usize::from(self.word(at.saturating_add(2)) >> 4);
            if at < FIRST {
                return None;
            }
        }
        None
    }

    /// The PCI Express capability, if the function has one.
    pub(crate) fn express(&self) -> Option<Express> {
        const HAS_LIST: u16 = 1 << 4;
        const MOST: usize = 48;
        if self.word(0x06) & HAS_LIST == 0 {
            return None;
        }
        let mut at = usize::from(self.byte(CAPABILITY_POINTER) & 0xfc);
        for _ in 0..MOST {
            if at < 0x40 {
                return None;
            }
            if self.byte(at) == EXPRESS {
                let register = |offset: usize| self.word(at.saturating_add(offset));
                return Some(Express {
                    port_type: register(2) >> 4 & 0xf,
                    function_level_reset: register(6) & 1 << 12 != 0,
                    capable: Link::of(register(0x0c)),
                    current: Link::of(register(0x12)),
                });
            }
            at = usize::from(self.byte(at.saturating_add(1)) & 0xfc);
        }
        None
    }
}

/// What sysfs shows of the PCI Express capability. PCI Express Base 6.0
/// section 7.5.3.
pub(crate) struct Express {
    pub(crate) port_type: u16,
    pub(crate) function_level_reset: bool,
    pub(crate) capable: Link,
    pub(crate) current: Link,
}

impl Express {
    /// Whether the function has a link: an integrated endpoint has none.
    pub(crate) fn has_link(&self) -> bool {
        const INTEGRATED: [u16; 2] = [9, 10];
        !INTEGRATED.contains(&self.port_type)
    }
}

/// Speed and width of a link, as in the low bits of the Link Capabilities and
/// Link Status registers.
pub(crate) struct Link {
    speed: u16,
    width: u16,
}

impl Link {
    fn of(register: u16) -> Self {
        Self {
            speed: register & 0xf,
            width: register >> 4 & 0x3f,
        }
    }

    /// As Linux drivers/pci/probe.c `pci_speed_string` has it.
    pub(crate) fn speed(&self) -> &'static str {
        match self.speed {
            1 => "2.5 GT/s PCIe",
            2 => "5.0 GT/s PCIe",
            3 => "8.0 GT/s PCIe",
            4 => "16.0 GT/s PCIe",
            5 => "32.0 GT/s PCIe",
            6 => "64.0 GT/s PCIe",
            _ => "Unknown",
        }
    }

    /// Lanes.
    pub(crate) fn width(&self) -> u16 {
        self.width
    }
}
