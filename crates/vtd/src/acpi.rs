//! The ACPI table that tells a guest of its units: DMA Remapping Reporting
//! ("DMAR"). VT-d 4.1 section 8.
//!
//! ```
//! use iogate_dma::RequesterId;
//! use iogate_vtd::acpi::{Dmar, Drhd, Scope};
//!
//! let nvme = RequesterId::new(0, 5, 0).ok_or("no such function")?;
//! let table = Dmar::new(48)
//!     .unit(Drhd::new(0xfed9_0000).scope(Scope::endpoint(nvme)))
//!     .to_bytes()?;
//! assert_eq!(&table[..4], b"DMAR");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod scope;
mod structure;

use std::collections::BTreeSet;

use crate::Vtd;

pub use scope::{Path, Scope};
pub use structure::{Andd, Atsr, Drhd, Rhsa, Rmrr, Satc};

use structure::Structure;

/// Offset and bytes of fields of the table's header. ACPI 6.5 section 5.2.6.
const LENGTH: std::ops::Range<usize> = 4..8;
const CHECKSUM: usize = 9;
/// Revision of the table that section 8.1 describes.
const REVISION: u8 = 1;

/// Flags of the table. Section 8.1.
const INTR_REMAP: u8 = 1 << 0;
const X2APIC_OPT_OUT: u8 = 1 << 1;
const DMA_CTRL_PLATFORM_OPT_IN: u8 = 1 << 2;

/// Why a table cannot be made.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TableError {
    /// The host address width is not 1 to 64 bits.
    #[error("a host address width of {0} bits")]
    Width(u8),
    /// The registers of a unit do not begin at a page.
    #[error("the registers at {base:#x} do not begin at a multiple of 4 KiB")]
    Registers {
        /// Where they begin.
        base: u64,
    },
    /// A segment has two units that take all that others do not.
    #[error("segment {0:04x} has two units with INCLUDE_PCI_ALL")]
    TwoCatchAlls(u16),
    /// A reserved region does not consist of pages.
    #[error("the reserved region {first:#x}-{last:#x} is not made of pages of 4 KiB")]
    Region {
        /// Its first byte.
        first: u64,
        /// Its last byte.
        last: u64,
    },
    /// A path has no step, or a device above 31, or a function above 7.
    #[error("no path to a device: {0:x?} from bus {1:#04x}")]
    Path(Vec<(u8, u8)>, u8),
    /// A name of an ACPI object that is empty, not ASCII, or has a zero in it.
    #[error("{0:?} is no name of an ACPI object")]
    Name(String),
    /// A structure or the table has more bytes than its length field can say.
    #[error("too many scopes for the length of a structure or of the table")]
    TooLong,
}

/// Who made the table, as its header says. ACPI 6.5 section 5.2.6.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// The manufacturer.
    pub oem: [u8; 6],
    /// The table among the manufacturer's tables.
    pub table: [u8; 8],
    /// The manufacturer's revision of it.
    pub revision: u32,
    /// The program that made it.
    pub creator: [u8; 4],
    /// That program's revision.
    pub creator_revision: u32,
}

impl Default for Identity {
    fn default() -> Self {
        Self {
            oem: *b"IOGATE",
            table: *b"IOGATEVT",
            revision: 1,
            creator: *b"IOGT",
            creator_revision: 1,
        }
    }
}

/// The table. Structures may be added in any order: the table has them in the
/// order that section 8.2 wants.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Dmar {
    identity: Identity,
    width: u8,
    flags: u8,
    units: Vec<Drhd>,
    regions: Vec<Rmrr>,
    root_ports: Vec<Atsr>,
    affinities: Vec<Rhsa>,
    devices: Vec<Andd>,
    integrated: Vec<Satc>,
}

impl Dmar {
    /// A table without units. `width` is the host address width in bits: DMA
    /// reaches addresses below 2 to the power of it.
    pub fn new(width: u8) -> Self {
        Self {
            identity: Identity::default(),
            width,
            flags: 0,
            units: Vec::new(),
            regions: Vec::new(),
            root_ports: Vec::new(),
            affinities: Vec::new(),
            devices: Vec::new(),
            integrated: Vec::new(),
        }
    }

    /// Who made the table.
    #[must_use]
    pub fn identity(mut self, identity: Identity) -> Self {
        self.identity = identity;
        self
    }

    /// INTR_REMAP: the machine can remap interrupts. Every unit must offer it
    /// then, and every I/O APIC must stand in a scope.
    #[must_use]
    pub fn interrupt_remapping(mut self) -> Self {
        self.flags |= INTR_REMAP;
        self
    }

    /// X2APIC_OPT_OUT: asks system software not to enable x2APIC mode.
    #[must_use]
    pub fn x2apic_opt_out(mut self) -> Self {
        self.flags |= X2APIC_OPT_OUT;
        self
    }

    /// DMA_CTRL_PLATFORM_OPT_IN_FLAG: asks system software to keep devices
    /// from memory that it did not give them.
    #[must_use]
    pub fn dma_control_opt_in(mut self) -> Self {
        self.flags |= DMA_CTRL_PLATFORM_OPT_IN;
        self
    }

    /// Adds a unit.
    #[must_use]
    pub fn unit(mut self, unit: Drhd) -> Self {
        self.units.push(unit);
        self
    }

    /// Adds memory that devices use by firmware's arrangement.
    #[must_use]
    pub fn reserved(mut self, region: Rmrr) -> Self {
        self.regions.push(region);
        self
    }

    /// Adds root ports below which devices may use ATS.
    #[must_use]
    pub fn root_ports(mut self, ports: Atsr) -> Self {
        self.root_ports.push(ports);
        self
    }

    /// Adds the proximity domain of a unit.
    #[must_use]
    pub fn affinity(mut self, affinity: Rhsa) -> Self {
        self.affinities.push(affinity);
        self
    }

    /// Adds a device of the ACPI name space.
    #[must_use]
    pub fn device(mut self, device: Andd) -> Self {
        self.devices.push(device);
        self
    }

    /// Adds devices integrated in the SoC that may use ATS.
    #[must_use]
    pub fn integrated(mut self, devices: Satc) -> Self {
        self.integrated.push(devices);
        self
    }

    /// The table, with its checksum.
    ///
    /// # Errors
    /// If something in it cannot be said, or contradicts section 8.
    pub fn to_bytes(&self) -> Result<Vec<u8>, TableError> {
        let stored_width = match self.width {
            1..=64 => self.width.saturating_sub(1),
            width => return Err(TableError::Width(width)),
        };
        let mut bytes = Vec::new();
        bytes.extend(b"DMAR");
        bytes.extend([0; 4]);
        bytes.extend([REVISION, 0]);
        bytes.extend(self.identity.oem);
        bytes.extend(self.identity.table);
        bytes.extend(self.identity.revision.to_le_bytes());
        bytes.extend(self.identity.creator);
        bytes.extend(self.identity.creator_revision.to_le_bytes());
        bytes.extend([stored_width, self.flags]);
        bytes.extend([0; 10]);
        self.units(&mut bytes)?;
        Structure::all(&self.regions, &mut bytes)?;
        Structure::all(&self.root_ports, &mut bytes)?;
        Structure::all(&self.affinities, &mut bytes)?;
        Structure::all(&self.devices, &mut bytes)?;
        Structure::all(&self.integrated, &mut bytes)?;
        let length = u32::try_from(bytes.len()).map_err(|_| TableError::TooLong)?;
        if let Some(field) = bytes.get_mut(LENGTH) {
            field.copy_from_slice(&length.to_le_bytes());
        }
        let sum = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        if let Some(field) = bytes.get_mut(CHECKSUM) {
            *field = sum.wrapping_neg();
        }
        Ok(bytes)
    }

    /// Section 8.3: the unit that takes what others do not stands after the
    /// other units of its segment.
    fn units(&self, bytes: &mut Vec<u8>) -> Result<(), TableError> {
        let mut catch_alls = BTreeSet::new();
        for unit in self.units.iter().filter(|unit| unit.is_catch_all()) {
            if !catch_alls.insert(unit.segment_number()) {
                return Err(TableError::TwoCatchAlls(unit.segment_number()));
            }
        }
        let (last, first): (Vec<&Drhd>, Vec<&Drhd>) =
            self.units.iter().partition(|unit| unit.is_catch_all());
        for unit in first.into_iter().chain(last) {
            unit.append(bytes)?;
        }
        Ok(())
    }
}

impl Vtd {
    /// The structure that tells a guest of this unit, whose registers it finds
    /// at `base`: its scope as endpoints, on the buses as they are numbered
    /// now, or INCLUDE_PCI_ALL without a scope. Functions behind bridges whose
    /// bus numbers the guest may change want a [`Path`] instead.
    pub fn drhd(&self, base: u64) -> Drhd {
        match &self.scope {
            None => Drhd::new(base).include_all(),
            Some(scope) => scope.iter().fold(Drhd::new(base), |unit, function| {
                unit.scope(Scope::endpoint(*function))
            }),
        }
    }
}

#[cfg(test)]
mod tests;
