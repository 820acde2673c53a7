//! What a probe finds out.

use std::collections::BTreeMap;

use iogate_dma::{Source, Span};
use iogate_passthrough::{DeviceInfo, Interrupt, IommuInfo, Region};

/// Everything that was found.
#[derive(Debug, Default)]
pub(super) struct Facts {
    pub(super) inside_session: bool,
    pub(super) groups: BTreeMap<u32, Group>,
    pub(super) functions: Vec<Function>,
}

/// An isolation group as sysfs shows it.
#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) kind: Option<String>,
    pub(super) reserved: Vec<(Span, String)>,
    pub(super) members: Vec<Source>,
}

/// A PCI function.
#[derive(Debug)]
pub(super) struct Function {
    pub(super) source: Source,
    pub(super) vendor: u16,
    pub(super) device: u16,
    /// Base class, subclass, programming interface.
    pub(super) class: u32,
    pub(super) driver: Option<String>,
    pub(super) group: Option<u32>,
    /// The N of `/dev/vfio/devices/vfioN`.
    pub(super) cdev: Option<u32>,
    pub(super) by_group: Option<Opened>,
    pub(super) by_cdev: Option<Opened>,
    pub(super) exercised: Vec<Exercised>,
    pub(super) problems: Vec<Problem>,
}

/// What an open device file says.
#[derive(Debug, Default)]
pub(super) struct Opened {
    pub(super) info: Option<DeviceInfo>,
    pub(super) regions: Vec<(u32, Region)>,
    pub(super) interrupts: Vec<(u32, Interrupt)>,
    pub(super) capabilities: Vec<String>,
    pub(super) iommu: IommuInfo,
}

/// Something that was tried on a device and worked.
#[derive(Debug)]
pub(super) struct Exercised {
    pub(super) path: &'static str,
    pub(super) what: String,
}

/// Why a function cannot be used, and what to do about it.
#[derive(Debug)]
pub(super) struct Problem {
    pub(super) what: String,
    pub(super) remedy: String,
}

impl Function {
    /// Bound to a driver that lets user space have it.
    pub(super) fn is_assignable(&self) -> bool {
        self.driver
            .as_deref()
            .is_some_and(|driver| driver.contains("vfio"))
    }

    pub(super) fn is_bridge(&self) -> bool {
        self.class >> 16 == 6
    }

    /// A word for what it is.
    pub(super) fn kind(&self) -> &'static str {
        match (self.vendor, self.device, self.class) {
            (0x1234, 0x11e8, _) => "edu",
            (_, _, 0x01_0802) => "nvme",
            (_, _, class) => match class >> 16 {
                1 => "storage",
                2 => "network",
                3 => "display",
                6 => "bridge",
                0x0c => "serial bus",
                _ => "function",
            },
        }
    }

    pub(super) fn problem(&mut self, what: impl Into<String>, remedy: impl Into<String>) {
        self.problems.push(Problem {
            what: what.into(),
            remedy: remedy.into(),
        });
    }
}
