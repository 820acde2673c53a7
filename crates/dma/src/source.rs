//! Who makes an access: requester id, PCI segment, process address space.

use std::fmt;
use std::str::FromStr;

/// A PCI requester id: bus, device and function as they stand in a TLP.
/// PCI Express Base 6.0 section 2.2.6.2.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RequesterId(pub u16);

impl RequesterId {
    /// The id of `bus`:`device`.`function`; `None` if `device` is above 31 or
    /// `function` above 7.
    pub fn new(bus: u8, device: u8, function: u8) -> Option<Self> {
        (device < 32 && function < 8)
            .then(|| Self(u16::from(bus) << 8 | u16::from(device) << 3 | u16::from(function)))
    }

    /// Bus number, 0-255.
    pub fn bus(self) -> u8 {
        self.0.to_be_bytes()[0]
    }

    /// Device number, 0-31.
    pub fn device(self) -> u8 {
        self.0.to_be_bytes()[1] >> 3
    }

    /// Function number, 0-7.
    pub fn function(self) -> u8 {
        self.0.to_be_bytes()[1] & 7
    }
}

impl fmt::Display for RequesterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:02x}:{:02x}.{:x}",
            self.bus(),
            self.device(),
            self.function()
        )
    }
}

/// A process address space id, 20 bits. PCI Express Base 6.0 section 6.20.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Pasid(u32);

impl Pasid {
    /// The id with this number; `None` from 2^20 up.
    pub fn new(raw: u32) -> Option<Self> {
        (raw < 1 << 20).then_some(Self(raw))
    }

    /// The number of this id.
    pub fn as_u32(self) -> u32 {
        self.0
    }
}

/// Who makes an access, as an IOMMU sees it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Source {
    /// PCI segment group (Linux: domain).
    pub segment: u16,
    /// Requester id on that segment.
    pub requester: RequesterId,
    /// Process address space, if the access names one.
    pub pasid: Option<Pasid>,
}

impl Source {
    /// The source of requests without PASID of `requester` on `segment`.
    pub fn new(segment: u16, requester: RequesterId) -> Self {
        Self {
            segment,
            requester,
            pasid: None,
        }
    }

    /// The function itself, whatever PASID it acted with.
    pub fn function(self) -> Self {
        Self {
            pasid: None,
            ..self
        }
    }
}

impl From<RequesterId> for Source {
    /// The function with this id on segment 0.
    fn from(requester: RequesterId) -> Self {
        Self::new(0, requester)
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{}", self.segment, self.requester)?;
        match self.pasid {
            Some(pasid) => write!(f, " pasid {:#x}", pasid.as_u32()),
            None => Ok(()),
        }
    }
}

/// The text is not of the form `[SSSS:]BB:DD.F` in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not a PCI address of the form [segment:]bus:device.function")]
pub struct ParseRequesterIdError;

impl FromStr for Source {
    type Err = ParseRequesterIdError;

    /// Reads `0000:01:00.0` or `01:00.0`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let hex = |part: &str, digits: usize| {
            let fits = !part.is_empty() && part.len() <= digits;
            let plain = part.bytes().all(|b| b.is_ascii_hexdigit());
            u16::from_str_radix(part, 16)
                .ok()
                .filter(|_| fits && plain)
                .ok_or(ParseRequesterIdError)
        };
        let (rest, function) = text.rsplit_once('.').ok_or(ParseRequesterIdError)?;
        let (rest, device) = rest.rsplit_once(':').ok_or(ParseRequesterIdError)?;
        let (segment, bus) = match rest.split_once(':') {
            Some((segment, bus)) => (hex(segment, 4)?, bus),
            None => (0, rest),
        };
        let byte = |value: u16| u8::try_from(value).map_err(|_| ParseRequesterIdError);
        let requester = RequesterId::new(
            byte(hex(bus, 2)?)?,
            byte(hex(device, 2)?)?,
            byte(hex(function, 1)?)?,
        )
        .ok_or(ParseRequesterIdError)?;
        Ok(Self::new(segment, requester))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_reads_back_as_it_prints() {
        for text in ["0000:01:00.0", "ffff:ff:1f.7", "0001:00:02.3"] {
            assert_eq!(text.parse::<Source>().unwrap().to_string(), text);
        }
        assert_eq!(
            "02:03.1".parse::<Source>().unwrap().to_string(),
            "0000:02:03.1"
        );
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            "0000",
            "0:0:0",
            "00:20.0",
            "00:00.8",
            "x:00:00.0",
            "+1:00.0",
            "00000:00:00.0",
        ] {
            assert!(text.parse::<Source>().is_err(), "{text}");
        }
    }
}
