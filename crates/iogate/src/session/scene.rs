//! What `/sys` shows of a session at a time: the machine, and which of its
//! virtual functions are there.

use std::sync::Arc;

use iogate_dma::Source;
use iogate_host::{Host, Presence as Held};
use iogate_machine::{FunctionEntry, Machine};
use iogate_pci::{Bar, BarSpace, BarWidth, Endpoint, Function};
use iogate_supervisor::Attributes;
use iogate_sysfs::{
    FunctionFacts, Presence, Resource, Settings, SrIovFacts, SrIovFile, Tree, sr_iov_files,
};
use iogate_uapi::Attribute;

use super::{Functions, sriov};

pub(super) struct Scene {
    pub(super) machine: Machine,
    pub(super) settings: Settings,
    pub(super) host: Arc<Host>,
    pub(super) functions: Functions,
}

impl Scene {
    /// What is shown now.
    pub(super) fn tree(&self) -> Tree {
        Tree::new(&self.machine, self.settings, |entry| self.facts(entry))
    }

    /// The files whose writes do something; `None` if there are none.
    pub(super) fn attributes(self) -> Option<Attributes> {
        let files: Vec<_> = sr_iov_files(&self.machine)
            .into_iter()
            .filter_map(|(path, function, file)| {
                let source = self.machine.functions().get(function)?.source();
                let device = sriov::device_at(&self.host, source)?;
                let attribute = match file {
                    SrIovFile::NumVfs => Attribute::NumVfs { device },
                    SrIovFile::DriversAutoprobe => Attribute::DriversAutoprobe { device },
                };
                Some((path, attribute))
            })
            .collect();
        (!files.is_empty()).then(|| Attributes {
            files,
            tree: Box::new(move || self.tree()),
        })
    }

    fn function(&self, source: Source) -> Option<&dyn Function> {
        let all = self.functions.iter();
        let mut functions = all.map(|(_, function)| &**function);
        functions.find(|function| function.endpoint().source() == source)
    }

    /// What is shown of a device function.
    fn facts(&self, entry: &FunctionEntry) -> FunctionFacts {
        let mut facts = FunctionFacts {
            config: vec![0; 4096],
            resources: [Resource::default(); 7],
            irq: 0,
            numa_node: -1,
            presence: Presence::Present,
            sr_iov: None,
        };
        let Some(function) = self.function(entry.source()) else {
            return facts;
        };
        let endpoint = function.endpoint();
        endpoint.read_config(0, &mut facts.config);
        for bar in endpoint.bars() {
            let place = facts.resources.get_mut(usize::from(bar.index));
            let start = match entry.placed.virtual_of {
                Some(_) => self.virtual_bar(entry, bar),
                None => endpoint.bar_address(bar.index),
            };
            if let (Some(place), Some(start)) = (place, start) {
                *place = resource(bar, start, 1);
            }
        }
        let device = sriov::device_at(&self.host, entry.source());
        if let Some(device) = device {
            facts.presence = match self.host.presence(device) {
                Held::Bound => Presence::Present,
                Held::Unbound => Presence::Unbound,
                Held::Leaving => Presence::Leaving,
                Held::Absent => Presence::Absent,
            };
            facts.sr_iov = self.sr_iov(endpoint, device);
        }
        facts
    }

    fn sr_iov(&self, endpoint: &Endpoint, device: usize) -> Option<SrIovFacts> {
        let total = endpoint.total_virtual_functions();
        let mut resources = [Resource::default(); 6];
        for bar in endpoint.virtual_bars() {
            let place = resources.get_mut(usize::from(bar.index));
            let start = endpoint.virtual_bar_address(bar.index);
            if let (Some(place), Some(start)) = (place, start) {
                *place = resource(bar, start, total.into());
            }
        }
        (total > 0).then(|| SrIovFacts {
            enabled: self.host.enabled_virtual_functions(device),
            autoprobe: self.host.autoprobes(device),
            resources,
        })
    }

    /// Where a BAR of a virtual function is: behind those of the functions
    /// before it.
    fn virtual_bar(&self, entry: &FunctionEntry, bar: &Bar) -> Option<u64> {
        let of = entry.placed.virtual_of?;
        let owner = self.machine.functions().get(of.physical)?.source();
        let first = self.function(owner)?.endpoint();
        let first = first.virtual_bar_address(bar.index)?;
        first.checked_add(bar.size.checked_mul(of.number.into())?)
    }
}

/// A BAR, or as many behind each other.
fn resource(bar: &Bar, start: u64, count: u64) -> Resource {
    let flags = match bar.space {
        BarSpace::Io => Resource::IO,
        BarSpace::Memory => {
            let prefetchable = u64::from(bar.prefetchable) * Resource::PREFETCHABLE;
            let wide = u64::from(bar.width == BarWidth::Bits64) * Resource::WIDE;
            Resource::MEMORY | prefetchable | wide
        }
    };
    let size = bar.size.saturating_mul(count);
    Resource {
        start,
        end: start.saturating_add(size.saturating_sub(1)),
        flags,
    }
}
