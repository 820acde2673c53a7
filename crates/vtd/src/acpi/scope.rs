//! Which devices a structure is about. VT-d 4.1 section 8.3.1.

use iogate_dma::RequesterId;

use super::TableError;

/// Bytes of an entry before its path.
const FIXED: usize = 6;

/// The way from a host bridge's bus to a device: the device and function
/// numbers of each bridge on it, and of the device itself. It stays true when
/// system software gives the bridges other bus numbers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Path {
    bus: u8,
    steps: Vec<(u8, u8)>,
}

impl Path {
    /// Device and function on `bus`, which no bridge of the path leads to.
    pub fn new(bus: u8, device: u8, function: u8) -> Self {
        Self {
            bus,
            steps: vec![(device, function)],
        }
    }

    /// Goes on through the bridge that the path leads to, to a device and
    /// function on its secondary bus.
    #[must_use]
    pub fn through(mut self, device: u8, function: u8) -> Self {
        self.steps.push((device, function));
        self
    }
}

impl From<RequesterId> for Path {
    /// The function on its bus.
    fn from(function: RequesterId) -> Self {
        Self::new(function.bus(), function.device(), function.function())
    }
}

/// Types of scope entries. Section 8.3.1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
enum Kind {
    Endpoint = 1,
    Bridge = 2,
    IoApic = 3,
    Hpet = 4,
    Namespace = 5,
}

/// One entry of a device scope.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Scope {
    kind: Kind,
    enumeration: u8,
    path: Path,
}

impl Scope {
    /// A PCI endpoint.
    pub fn endpoint(path: impl Into<Path>) -> Self {
        Self::of(Kind::Endpoint, 0, path)
    }

    /// A PCI bridge, and all that is below it.
    pub fn bridge(path: impl Into<Path>) -> Self {
        Self::of(Kind::Bridge, 0, path)
    }

    /// The I/O APIC with this id in the MADT; `path` gives the source id of
    /// its messages.
    pub fn io_apic(id: u8, path: impl Into<Path>) -> Self {
        Self::of(Kind::IoApic, id, path)
    }

    /// A timer block that can send messages, with the number of its HPET
    /// table; `path` gives their source id.
    pub fn hpet(number: u8, path: impl Into<Path>) -> Self {
        Self::of(Kind::Hpet, number, path)
    }

    /// The device of the ACPI name space with this number in an
    /// [`Andd`](super::Andd); `path` gives the source id of its requests.
    pub fn namespace(number: u8, path: impl Into<Path>) -> Self {
        Self::of(Kind::Namespace, number, path)
    }

    fn of(kind: Kind, enumeration: u8, path: impl Into<Path>) -> Self {
        Self {
            kind,
            enumeration,
            path: path.into(),
        }
    }

    pub(super) fn append(&self, bytes: &mut Vec<u8>) -> Result<(), TableError> {
        let Path { bus, steps } = &self.path;
        let valid = steps
            .iter()
            .all(|&(device, function)| device < 32 && function < 8);
        if steps.is_empty() || !valid {
            return Err(TableError::Path(steps.clone(), *bus));
        }
        let length = steps.len().saturating_mul(2).saturating_add(FIXED);
        let length = u8::try_from(length).map_err(|_| TableError::TooLong)?;
        bytes.extend([self.kind as u8, length, 0, 0, self.enumeration, *bus]);
        for &(device, function) in steps {
            bytes.extend([device, function]);
        }
        Ok(())
    }
}
