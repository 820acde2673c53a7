//! The structures of the table, one type each. VT-d 4.1 sections 8.3 to 8.8.

use super::{Scope, TableError};

const PAGE: u64 = 4096;

/// A remapping structure: how it is laid out behind its type and length.
pub(super) trait Structure {
    /// Its type. Section 8.2.
    const TYPE: u16;

    /// Appends everything behind the length.
    fn body(&self, bytes: &mut Vec<u8>) -> Result<(), TableError>;

    /// Appends the structure.
    fn append(&self, bytes: &mut Vec<u8>) -> Result<(), TableError> {
        let mut body = Vec::new();
        self.body(&mut body)?;
        let length = u16::try_from(body.len().saturating_add(4)).ok();
        let length = length.ok_or(TableError::TooLong)?;
        bytes.extend(Self::TYPE.to_le_bytes());
        bytes.extend(length.to_le_bytes());
        bytes.extend(body);
        Ok(())
    }

    /// Appends each of them.
    fn all(of: &[Self], bytes: &mut Vec<u8>) -> Result<(), TableError>
    where
        Self: Sized,
    {
        of.iter().try_for_each(|structure| structure.append(bytes))
    }
}

fn append_scopes(scopes: &[Scope], bytes: &mut Vec<u8>) -> Result<(), TableError> {
    scopes.iter().try_for_each(|scope| scope.append(bytes))
}

/// DMA-remapping hardware unit definition. Section 8.3.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Drhd {
    base: u64,
    segment: u16,
    all: bool,
    scopes: Vec<Scope>,
}

impl Drhd {
    const INCLUDE_PCI_ALL: u8 = 1;
    /// The register set is 2 to the power of this many pages of 4 KiB.
    const SIZE: u8 = 0;

    /// A unit of segment 0 whose registers, a page of 4 KiB, begin at
    /// guest-physical address `base`.
    pub fn new(base: u64) -> Self {
        Self {
            base,
            segment: 0,
            all: false,
            scopes: Vec::new(),
        }
    }

    /// The unit's PCI segment.
    #[must_use]
    pub fn segment(mut self, segment: u16) -> Self {
        self.segment = segment;
        self
    }

    /// INCLUDE_PCI_ALL: the unit has every PCI function of its segment that
    /// stands in no other unit's scope. Its own scope names I/O APICs and HPETs
    /// only.
    #[must_use]
    pub fn include_all(mut self) -> Self {
        self.all = true;
        self
    }

    /// Adds devices.
    #[must_use]
    pub fn scope(mut self, scope: Scope) -> Self {
        self.scopes.push(scope);
        self
    }

    pub(super) fn is_catch_all(&self) -> bool {
        self.all
    }

    pub(super) fn segment_number(&self) -> u16 {
        self.segment
    }
}

impl Structure for Drhd {
    const TYPE: u16 = 0;

    fn body(&self, bytes: &mut Vec<u8>) -> Result<(), TableError> {
        if !self.base.is_multiple_of(PAGE) {
            return Err(TableError::Registers { base: self.base });
        }
        let flags = if self.all { Self::INCLUDE_PCI_ALL } else { 0 };
        bytes.extend([flags, Self::SIZE]);
        bytes.extend(self.segment.to_le_bytes());
        bytes.extend(self.base.to_le_bytes());
        append_scopes(&self.scopes, bytes)
    }
}

/// Reserved memory region: mapped one to one for its devices for as long as
/// system software has not taken them over. Section 8.4.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rmrr {
    first: u64,
    last: u64,
    segment: u16,
    scopes: Vec<Scope>,
}

impl Rmrr {
    /// The region of segment 0 from `first` to `last`, included: whole pages of
    /// 4 KiB.
    pub fn new(first: u64, last: u64) -> Self {
        Self {
            first,
            last,
            segment: 0,
            scopes: Vec::new(),
        }
    }

    /// The PCI segment of its devices.
    #[must_use]
    pub fn segment(mut self, segment: u16) -> Self {
        self.segment = segment;
        self
    }

    /// Adds devices.
    #[must_use]
    pub fn scope(mut self, scope: Scope) -> Self {
        self.scopes.push(scope);
        self
    }
}

impl Structure for Rmrr {
    const TYPE: u16 = 1;

    fn body(&self, bytes: &mut Vec<u8>) -> Result<(), TableError> {
        let &Self { first, last, .. } = self;
        let whole = first.is_multiple_of(PAGE) && last % PAGE == PAGE.saturating_sub(1);
        if !whole || last < first {
            return Err(TableError::Region { first, last });
        }
        bytes.extend([0; 2]);
        bytes.extend(self.segment.to_le_bytes());
        bytes.extend(first.to_le_bytes());
        bytes.extend(last.to_le_bytes());
        append_scopes(&self.scopes, bytes)
    }
}

/// Root ports below which devices may use ATS. Section 8.5.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Atsr {
    segment: u16,
    all: bool,
    scopes: Vec<Scope>,
}

impl Atsr {
    const ALL_PORTS: u8 = 1;

    /// No root port of a segment yet.
    pub fn new(segment: u16) -> Self {
        Self {
            segment,
            all: false,
            scopes: Vec::new(),
        }
    }

    /// ALL_PORTS: every root port of the segment; scopes say nothing then.
    #[must_use]
    pub fn all_ports(mut self) -> Self {
        self.all = true;
        self
    }

    /// Adds a root port, by [`Scope::bridge`].
    #[must_use]
    pub fn scope(mut self, scope: Scope) -> Self {
        self.scopes.push(scope);
        self
    }
}

impl Structure for Atsr {
    const TYPE: u16 = 2;

    fn body(&self, bytes: &mut Vec<u8>) -> Result<(), TableError> {
        bytes.extend([if self.all { Self::ALL_PORTS } else { 0 }, 0]);
        bytes.extend(self.segment.to_le_bytes());
        if self.all {
            return Ok(());
        }
        append_scopes(&self.scopes, bytes)
    }
}

/// Remapping hardware static affinity: the proximity domain of a unit, as in
/// the SRAT. Section 8.6.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rhsa {
    /// Where the unit's registers begin.
    pub base: u64,
    /// The proximity domain.
    pub domain: u32,
}

impl Structure for Rhsa {
    const TYPE: u16 = 3;

    fn body(&self, bytes: &mut Vec<u8>) -> Result<(), TableError> {
        bytes.extend([0; 4]);
        bytes.extend(self.base.to_le_bytes());
        bytes.extend(self.domain.to_le_bytes());
        Ok(())
    }
}

/// ACPI name-space device declaration: gives a device that is no PCI function
/// a number, which a scope then names. Section 8.7.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Andd {
    /// The number.
    pub number: u8,
    /// The full path of the object, such as `\_SB.I2C0`.
    pub name: String,
}

impl Structure for Andd {
    const TYPE: u16 = 4;

    fn body(&self, bytes: &mut Vec<u8>) -> Result<(), TableError> {
        let valid = self.name.bytes().all(|byte| byte.is_ascii_graphic());
        if self.name.is_empty() || !valid {
            return Err(TableError::Name(self.name.clone()));
        }
        bytes.extend([0; 3]);
        bytes.push(self.number);
        bytes.extend(self.name.bytes());
        bytes.push(0);
        Ok(())
    }
}

/// SoC integrated address translation cache: devices that may use ATS though
/// no root port is above them. Section 8.8.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Satc {
    segment: u16,
    required: bool,
    scopes: Vec<Scope>,
}

impl Satc {
    const ATC_REQUIRED: u8 = 1;

    /// No device of a segment yet.
    pub fn new(segment: u16) -> Self {
        Self {
            segment,
            required: false,
            scopes: Vec::new(),
        }
    }

    /// ATC_REQUIRED: system software must enable ATS on these devices before it
    /// uses them.
    #[must_use]
    pub fn required(mut self) -> Self {
        self.required = true;
        self
    }

    /// Adds a device.
    #[must_use]
    pub fn scope(mut self, scope: Scope) -> Self {
        self.scopes.push(scope);
        self
    }
}

impl Structure for Satc {
    const TYPE: u16 = 5;

    fn body(&self, bytes: &mut Vec<u8>) -> Result<(), TableError> {
        bytes.extend([if self.required { Self::ATC_REQUIRED } else { 0 }, 0]);
        bytes.extend(self.segment.to_le_bytes());
        append_scopes(&self.scopes, bytes)
    }
}
