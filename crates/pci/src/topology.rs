//! Buses, bridges and ACS: where every function of a machine sits, which bus
//! numbers its bridges get, which requester ids its accesses carry and which
//! functions cannot be isolated from each other.
//!
//! A [`Topology`] is built once from a list of [`Planned`] functions and never
//! changes. What follows from it is what Linux computes from the same
//! hardware: [`Topology::aliases`], [`Topology::isolation_groups`].
use iogate_dma::{RequesterId, Source};

mod alias;
mod header;
mod isolation;
mod numbers;
mod place;
mod sriov;
#[cfg(test)]
mod tests;

pub use header::bridge_config;
pub use sriov::{FIRST_VF_OFFSET, MAX_VFS, VF_STRIDE, VirtualOf};

/// The kinds of bridge, by the PCI Express capability's device/port type
/// (PCI Express Base 6.0 section 7.5.3.2).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum BridgeKind {
    /// Root port of a root complex; sits on a root bus.
    RootPort,
    /// The port of a switch that faces the root.
    UpstreamPort,
    /// A port of a switch that faces devices; sits behind an upstream port.
    DownstreamPort,
    /// Bridge from a PCI Express link to a conventional PCI bus.
    PcieToPci,
    /// Bridge between two conventional PCI buses.
    PciToPci,
}

/// What a function is, as far as its place in the tree is concerned.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum FunctionKind {
    /// A device function; conventional behind a conventional bus, integrated
    /// on a root bus, else a PCI Express endpoint.
    Endpoint,
    /// A bridge to one more bus.
    Bridge(BridgeKind),
}

/// One function as asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Planned {
    /// Endpoint or bridge.
    pub kind: FunctionKind,
    /// Index in the list of the bridge that it is behind; `None`: it sits on
    /// the root bus (00) of `segment`.
    pub parent: Option<usize>,
    /// The segment of a function without parent; the others have their
    /// parent's.
    pub segment: u16,
    /// The address that it must get; it fixes the number of its bus too.
    pub at: Option<Source>,
    /// Whether it has Access Control Services that redirect every peer-to-peer
    /// request upstream. Without effect where the specification has no ACS:
    /// conventional functions, bridges to conventional buses, and endpoints
    /// and upstream ports that are alone in their slot.
    pub acs: bool,
    /// Virtual functions of an endpoint, at most [`MAX_VFS`].
    pub vfs: u16,
}

/// The three bus numbers of a bridge. PCI-to-PCI Bridge Architecture 1.2
/// section 3.2.5.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Buses {
    /// The bus that the bridge sits on.
    pub primary: u8,
    /// The bus right behind it.
    pub secondary: u8,
    /// The highest bus number behind it.
    pub subordinate: u8,
}

/// One function in its place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Placed {
    /// Endpoint or bridge.
    pub kind: FunctionKind,
    /// Index of the bridge that it is behind.
    pub parent: Option<usize>,
    /// Segment and requester id.
    pub address: Source,
    /// The numbers of a bridge; `None` for endpoints.
    pub buses: Option<Buses>,
    /// Whether its slot holds more than one function.
    pub multifunction: bool,
    /// Whether it speaks PCI Express (false: conventional PCI).
    pub express: bool,
    /// As planned.
    pub acs: bool,
    /// Whether function numbers have 8 bits on its bus, or on the bus behind
    /// it if it is a bridge (PCI Express Base 6.0 section 6.13).
    pub ari: bool,
    /// For a virtual function, whose it is.
    pub virtual_of: Option<VirtualOf>,
}

impl Placed {
    /// Whether no peer-to-peer request gets past this function unseen by the
    /// IOMMU: `pci_acs_enabled` with the flags that IOMMU groups need (Linux
    /// drivers/pci/pci.c).
    pub fn isolates(&self) -> bool {
        use BridgeKind::{DownstreamPort, PciToPci, PcieToPci, RootPort, UpstreamPort};
        match self.kind {
            _ if !self.express => false,
            FunctionKind::Bridge(PcieToPci | PciToPci) => false,
            FunctionKind::Bridge(RootPort | DownstreamPort) => self.acs,
            FunctionKind::Bridge(UpstreamPort) | FunctionKind::Endpoint => {
                !self.multifunction || self.acs
            }
        }
    }
}

/// Why a planned function cannot be placed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Misplaced {
    /// The parent is no bridge of the list.
    #[error("only a bridge can have functions behind it")]
    NotABridge,
    /// Following the parents never ends.
    #[error("it is behind itself")]
    Loop,
    /// Following the parents does not end within the buses of a segment.
    #[error("it is behind more than 255 bridges, or behind itself")]
    TooDeep,
    /// Such a function cannot be there.
    #[error("{0} {1}")]
    WrongBus(&'static str, &'static str),
    /// A function without parent and an address off bus 00.
    #[error("the root bus is 00")]
    OffRootBus,
    /// The address names another segment than the bus that it is on.
    #[error("its bus is on segment {0:04x}")]
    OtherSegment(u16),
    /// Two functions on one bus ask for two bus numbers.
    #[error("both are on one bus, which cannot have two numbers")]
    TwoBusNumbers,
    /// The bus number is not free where the bus is.
    #[error(
        "bus {0:02x} cannot be behind this bridge: the numbers from {1:02x} on are left for it"
    )]
    BusNotFree(u8, u16),
    /// More than 256 buses on a segment.
    #[error("segment {0:04x} has no bus number left")]
    NoBusLeft(u16),
    /// A PCI Express link has device 0 only.
    #[error("behind a PCI Express port there is device 00 only")]
    NotDeviceZero,
    /// Two functions ask for one address.
    #[error("address {0} is taken")]
    AddressTaken(Source),
    /// The bus has no free slot.
    #[error("the bus is full")]
    BusFull,
    /// Virtual functions take function numbers that only ARI has.
    #[error("virtual functions need a root or downstream port above their device")]
    NoAri,
    /// More virtual functions than [`MAX_VFS`].
    #[error("a device has at most {MAX_VFS} virtual functions, not {0}")]
    TooManyVirtual(u16),
    /// Systems look for function 0 before they look for others.
    #[error("its slot has no function 0, so that no system would find it")]
    NoFunctionZero,
}

/// A planned function that cannot be placed, and the other one concerned.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("function {function}: {reason}")]
pub struct TopologyError {
    /// Index of the function in the list.
    pub function: usize,
    /// Index of the function that it collides with.
    pub other: Option<usize>,
    /// What is wrong.
    pub reason: Misplaced,
}

impl TopologyError {
    fn one(function: usize, reason: Misplaced) -> Self {
        Self {
            function,
            other: None,
            reason,
        }
    }

    fn two(function: usize, other: usize, reason: Misplaced) -> Self {
        Self {
            function,
            other: Some(other),
            reason,
        }
    }
}

/// Every function of a machine in its place; indexes are those of the list
/// that it was built from. Virtual functions follow, device by device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Topology {
    functions: Vec<Placed>,
}

impl Topology {
    /// Places every function. Addresses that are not asked for are given in
    /// the order of the list: the lowest free device number, function 0, from
    /// device 01 on root buses and conventional buses (00 is the host
    /// bridge's, and a requester id that bridges use) and from 00 behind an
    /// upstream port; the lowest free function of device 00 behind a port with
    /// a link; further functions of the lowest devices when every device
    /// number is taken. Buses are numbered depth first, each bus's
    /// bridges in the order of the list, but so that the numbers
    /// asked for come out.
    ///
    /// # Errors
    /// [`TopologyError`] names the function that cannot be placed.
    pub fn new(planned: &[Planned]) -> Result<Self, TopologyError> {
        let mut functions = place::place(planned)?;
        sriov::add(planned, &mut functions)?;
        Ok(Self { functions })
    }

    /// Every function, in the order of the list.
    pub fn functions(&self) -> &[Placed] {
        &self.functions
    }

    /// The bridges above a function, nearest first.
    fn upstream(&self, index: usize) -> impl Iterator<Item = (usize, &Placed)> {
        let parent = move |of: usize| self.functions.get(of).and_then(|f| f.parent);
        std::iter::successors(parent(index), move |&of| parent(of))
            .filter_map(|of| Some((of, self.functions.get(of)?)))
    }

    /// The requester ids that accesses of a function may carry where an IOMMU
    /// sees them: its own first, then those that bridges to conventional buses
    /// put in its place. Empty for an index out of range.
    pub fn aliases(&self, index: usize) -> Vec<RequesterId> {
        self.alias_owners(index)
            .into_iter()
            .map(|(_, id)| id)
            .collect()
    }

    /// The smallest sets of functions that can be isolated from each other,
    /// in the order of their lowest address; members in the order of their
    /// addresses.
    pub fn isolation_groups(&self) -> Vec<Vec<usize>> {
        isolation::groups(self)
    }
}
