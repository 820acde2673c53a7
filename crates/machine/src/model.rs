//! The finished machine: what the other rooms read.
use iogate_dma::{RequesterId, Source, Span};
use iogate_pci::topology::{BridgeKind, Placed};
use std::fmt;

/// Whether pinned memory counts against `RLIMIT_MEMLOCK` of the client.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Memlock {
    /// Nothing is counted.
    #[default]
    Off,
    /// Counted and refused as the kernel does.
    Enforce,
}

/// What a reserved range is for; the kinds of Linux include/linux/iommu.h
/// `enum iommu_resv_type`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ReservedKind {
    /// Mapped to itself while the kernel owns the device; never the client's.
    Direct,
    /// Mapped to itself while the kernel owns the device; the client's later.
    DirectRelaxable,
    /// Never mapped.
    Reserved,
    /// Writes are interrupt messages and bypass translation.
    Msi,
    /// A window that the kernel maps doorbells in.
    SoftwareMsi,
}

impl ReservedKind {
    /// The name in `/sys/kernel/iommu_groups/N/reserved_regions` (Linux
    /// drivers/iommu/iommu.c `iommu_group_resv_type_string`).
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::DirectRelaxable => "direct-relaxable",
            Self::Reserved => "reserved",
            Self::Msi | Self::SoftwareMsi => "msi",
        }
    }
}

/// A range of IOVAs that is not the client's to map, with the exception of
/// [`ReservedKind::DirectRelaxable`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reserved {
    /// The range.
    pub span: Span,
    /// What it is for.
    pub kind: ReservedKind,
}

/// A unit of Intel VT-d, beyond what every [`Iommu`] says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Vtd {
    /// Where the function stands that has its registers, if that is said.
    pub at: Option<Source>,
    /// Whether it has scalable mode besides legacy mode.
    pub scalable: bool,
    /// Whether it has first-stage tables in scalable mode, if that is said.
    pub first_stage: Option<bool>,
    /// Whether it nests its two stages, if that is said.
    pub nested: Option<bool>,
    /// Whether devices may ask it for translations.
    pub ats: bool,
    /// Whether devices may ask it for pages.
    pub page_requests: bool,
    /// Whether it can force DMA to snoop caches.
    pub snoop_control: bool,
    /// Whether what is not present is cached, so that a guest invalidates it.
    pub caching_mode: bool,
    /// Fault recording registers, 1-222.
    pub fault_records: u16,
}

/// What a guest sees of an IOMMU. A program that runs under a kernel of its own
/// sees none of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum IommuKind {
    /// Nothing.
    Generic,
    /// Intel VT-d.
    Vtd(Vtd),
}

/// One IOMMU.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Iommu {
    /// Unique in the machine.
    pub name: String,
    /// What it is.
    pub kind: IommuKind,
    /// Width of an IOVA, 12-64.
    pub iova_bits: u8,
    /// Page sizes as a bitmap: bit n set means 2^n bytes; never 0.
    pub page_sizes: u64,
    /// Disjoint, in ascending order.
    pub reserved: Vec<Reserved>,
    /// Whether it can enforce cache coherency.
    pub coherent: bool,
    /// Whether its page tables can record which pages were written.
    pub dirty_tracking: bool,
    /// Bits of a PASID that it tells apart, 0-20; 0: it takes no PASIDs.
    pub pasid_bits: u8,
}

/// The driver that a function is bound to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Driver {
    /// `vfio-pci`: the client's.
    Vfio,
    /// `pcieport`: a port, never in the way of its group.
    Port,
    /// No driver.
    None,
    /// Another driver of the machine's kernel.
    Host(String),
}

impl Driver {
    /// The driver's name under `/sys/bus/pci/drivers`; `None` if unbound.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::Vfio => Some("vfio-pci"),
            Self::Port => Some("pcieport"),
            Self::None => None,
            Self::Host(name) => Some(name),
        }
    }

    /// Whether the driver leaves the DMA of its group to others, so that the
    /// group can be assigned: `driver_managed_dma` in Linux
    /// include/linux/pci.h `struct pci_driver`.
    pub fn leaves_dma_alone(&self) -> bool {
        match self {
            Self::Vfio | Self::Port | Self::None => true,
            Self::Host(name) => name == "pci-stub",
        }
    }
}

/// What stands between a function and memory: the same for all of a group.
/// Linux include/linux/vfio.h and drivers/vfio/vfio.h `enum vfio_group_type`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Translation {
    /// The unit with this index in [`Machine::iommus`].
    Unit(usize),
    /// Nothing: the device is software, a mediated device, that looks at the
    /// client's mappings by itself.
    Emulated,
    /// Nothing: the device reaches memory by physical addresses.
    None,
}

/// How a program reaches registers in a device's memory BARs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Mmio {
    /// By reads and writes of the device file: its BARs cannot be mapped.
    #[default]
    Trap,
    /// By mappings too: each access is executed for the program.
    Map,
}

/// The value of a model's property.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Value {
    /// Bytes.
    Size(u64),
    /// A number without unit.
    Integer(u64),
    /// Yes or no.
    Boolean(bool),
    /// Anything else.
    Text(String),
}

/// What an entry says about its model, by name; each name once.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Properties(pub(crate) Vec<(String, Value)>);

impl Properties {
    /// Names and values in the order of the entry.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// The value of a property, if the entry has it.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.iter().find(|(n, _)| *n == name).map(|(_, v)| v)
    }

    /// A size or an integer.
    pub fn number(&self, name: &str) -> Option<u64> {
        match self.get(name)? {
            Value::Size(n) | Value::Integer(n) => Some(*n),
            Value::Boolean(_) | Value::Text(_) => None,
        }
    }

    /// A boolean.
    pub fn boolean(&self, name: &str) -> Option<bool> {
        match self.get(name)? {
            Value::Boolean(yes) => Some(*yes),
            _ => None,
        }
    }

    /// A text.
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.get(name)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// A bridge's own facts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BridgeEntry {
    /// Its name; `None` for the root port that a device got by default.
    pub name: Option<String>,
    /// Its kind.
    pub kind: BridgeKind,
}

/// A device's own facts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceEntry {
    /// The model's name, one of those known.
    pub model: String,
    /// What its socket is called under `iogate serve`, if that is said.
    pub name: Option<String>,
    /// What the entry says about it.
    pub properties: Properties,
    /// Where its entry stands, for messages: `machine.toml:7:9`.
    pub place: String,
    /// N of `/dev/vfio/devices/vfioN`; `None` unless bound to vfio-pci. One
    /// without IOMMU has the number, but no node.
    pub cdev: Option<u32>,
    /// Whether its registers can be mapped.
    pub mmio: Mmio,
    /// Whether it asks its unit for translations and keeps them.
    pub ats: bool,
    /// The UUID of a mediated device, which is no PCI function: its address is
    /// a number that no function has.
    pub mediated: Option<String>,
}

/// What a function is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FunctionKind {
    /// A bridge.
    Bridge(BridgeEntry),
    /// A device.
    Device(DeviceEntry),
}

/// One PCI function of the machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FunctionEntry {
    /// Bridge or device.
    pub kind: FunctionKind,
    /// Its place; `placed.address` is its source, `placed.parent` the index
    /// (in [`Machine::functions`]) of the bridge that it is behind, likewise
    /// `placed.virtual_of.physical` that of a virtual function's owner.
    pub placed: Placed,
    /// The requester ids that its accesses may carry, its own first; the last
    /// is the one that an IOMMU at the root sees.
    pub aliases: Vec<RequesterId>,
    /// The number of its group.
    pub group: u32,
    /// The driver that it is bound to.
    pub driver: Driver,
    /// What stands between it and memory.
    pub translation: Translation,
}

impl FunctionEntry {
    /// Its name in VFIO: the address, or the UUID of a mediated device.
    pub fn name(&self) -> String {
        let device = self.device();
        let mediated = device.and_then(|device| device.mediated.clone());
        mediated.unwrap_or_else(|| self.source().to_string())
    }

    /// Segment and requester id.
    pub fn source(&self) -> Source {
        self.placed.address
    }

    /// The device's facts; `None` for a bridge.
    pub fn device(&self) -> Option<&DeviceEntry> {
        match &self.kind {
            FunctionKind::Device(device) => Some(device),
            FunctionKind::Bridge(_) => None,
        }
    }
}

impl fmt::Display for FunctionEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match &self.kind {
            FunctionKind::Device(device) => device.model.as_str(),
            FunctionKind::Bridge(bridge) => bridge.name.as_deref().unwrap_or("root port"),
        };
        write!(f, "{name} {}", self.name())
    }
}

/// Functions that cannot be isolated from each other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Group {
    /// N of `/dev/vfio/N`.
    pub number: u32,
    /// Indexes in [`Machine::functions`], ascending; never empty.
    pub members: Vec<usize>,
    /// The same for every member.
    pub translation: Translation,
}

/// A machine; see the crate's documentation for how one comes about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Machine {
    pub(crate) memlock: Memlock,
    pub(crate) dma_entry_limit: u32,
    pub(crate) iommus: Vec<Iommu>,
    pub(crate) default_iommu: bool,
    pub(crate) functions: Vec<FunctionEntry>,
    pub(crate) groups: Vec<Group>,
}

impl Machine {
    /// Whether pinned memory is counted.
    pub fn memlock(&self) -> Memlock {
        self.memlock
    }

    /// Mappings that one type1 container may have.
    pub fn dma_entry_limit(&self) -> u32 {
        self.dma_entry_limit
    }

    /// At least one.
    pub fn iommus(&self) -> &[Iommu] {
        &self.iommus
    }

    /// Whether the machine names no IOMMU, so that it has the default one.
    pub fn has_default_iommu(&self) -> bool {
        self.default_iommu
    }

    /// Bridges and devices in the order of their addresses.
    pub fn functions(&self) -> &[FunctionEntry] {
        &self.functions
    }

    /// The virtual functions of the function with this index, with their
    /// indexes, in the order of their numbers.
    pub fn virtual_functions(
        &self,
        physical: usize,
    ) -> impl Iterator<Item = (usize, &FunctionEntry)> {
        let functions = self.functions.iter().enumerate();
        functions.filter(move |(_, entry)| {
            let of = entry.placed.virtual_of;
            of.is_some_and(|of| of.physical == physical)
        })
    }

    /// The device functions and their indexes in [`Machine::functions`].
    pub fn devices(&self) -> impl Iterator<Item = (usize, &FunctionEntry, &DeviceEntry)> {
        let functions = self.functions.iter().enumerate();
        functions.filter_map(|(index, entry)| Some((index, entry, entry.device()?)))
    }

    /// The index of the function at an address.
    pub fn function_at(&self, source: Source) -> Option<usize> {
        self.functions
            .binary_search_by_key(&source, FunctionEntry::source)
            .ok()
    }

    /// In ascending order of their numbers.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// The group with this number.
    pub fn group(&self, number: u32) -> Option<&Group> {
        let at = self.groups.binary_search_by_key(&number, |g| g.number);
        self.groups.get(at.ok()?)
    }

    /// The members of a group.
    pub fn members<'a>(&'a self, group: &'a Group) -> impl Iterator<Item = &'a FunctionEntry> {
        let members = group.members.iter();
        members.filter_map(|&index| self.functions.get(index))
    }

    /// Whether the group has a node under `/dev/vfio`: a member is bound to
    /// vfio-pci.
    pub fn has_node(&self, group: &Group) -> bool {
        self.members(group).any(|f| f.driver == Driver::Vfio)
    }

    /// The name of the group's node under `/dev/vfio`.
    pub fn node_name(&self, group: &Group) -> String {
        match group.translation {
            Translation::None => format!("noiommu-{}", group.number),
            _ => group.number.to_string(),
        }
    }

    /// Whether no member's driver keeps the group from being assigned.
    pub fn is_viable(&self, group: &Group) -> bool {
        self.members(group).all(|f| f.driver.leaves_dma_alone())
    }
}
