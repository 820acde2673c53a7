//! Entries put in their places: names resolved, root ports added, addresses,
//! units, groups and node numbers given.
use crate::diagnostic::{Mark, Report};
use crate::entries::{self, BridgeEntry, DeviceEntry, Entries};
use crate::fields::Located;
use crate::groups;
use crate::mediated;
use crate::model::{self, Driver, FunctionEntry, FunctionKind, IommuKind, Machine, Translation};
use crate::tables;
use crate::{MAX_VIRTUAL_FUNCTIONS, VIRTUAL_FUNCTIONS};
use iogate_dma::Source;
use iogate_pci::topology::{self, BridgeKind, Planned, Topology};
use std::collections::BTreeMap;

/// The limit of a container that says nothing: Linux
/// drivers/vfio/vfio_iommu_type1.c `dma_entry_limit`.
const DMA_ENTRY_LIMIT: u32 = 65535;

/// What a planned function comes from.
#[derive(Clone, Copy)]
pub(crate) enum Origin<'a> {
    Bridge(&'a BridgeEntry),
    /// The root port that this device got because it named no bridge.
    OwnPort(&'a DeviceEntry),
    Device(&'a DeviceEntry),
    /// A virtual function of this device.
    Virtual(&'a DeviceEntry),
}

impl<'a> Origin<'a> {
    /// The place that stands for the entry.
    pub(crate) fn mark(self) -> &'a Mark {
        match self {
            Self::Bridge(bridge) => &bridge.mark,
            Self::OwnPort(device) | Self::Device(device) | Self::Virtual(device) => &device.mark,
        }
    }

    fn at(self) -> Option<&'a Located<Source>> {
        match self {
            Self::Bridge(bridge) => bridge.at.as_ref(),
            Self::OwnPort(device) | Self::Device(device) => device.at.as_ref(),
            Self::Virtual(_) => None,
        }
    }

    fn iommu(self) -> Option<&'a Located<String>> {
        match self {
            Self::Bridge(bridge) => bridge.iommu.as_ref(),
            Self::OwnPort(device) | Self::Device(device) | Self::Virtual(device) => {
                device.iommu.as_ref()
            }
        }
    }

    /// The entry in words.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Bridge(bridge) => format!("bridge `{}`", bridge.name),
            Self::OwnPort(device) => format!("the root port of `{}`", device.model),
            Self::Device(device) => format!("device `{}`", device.model),
            Self::Virtual(device) => format!("a virtual function of `{}`", device.model),
        }
    }
}

/// The machine, or nothing and a report that says why.
pub(crate) fn build(entries: &Entries, report: &mut Report) -> Option<Machine> {
    let mut iommus: Vec<model::Iommu> = Vec::new();
    let names = entries.iommus.iter().map(|e| (&e.iommu.name, &e.mark));
    unique(names, "IOMMU", report);
    iommus.extend(entries.iommus.iter().map(|entry| entry.iommu.clone()));
    if iommus.is_empty() {
        iommus.push(tables::default_iommu());
    }
    let bridges = entries.bridges.iter().map(|e| (&e.name, &e.mark));
    unique(bridges, "bridge", report);

    let mut plan = Plan::new(entries, report)?;
    let topology = match Topology::new(&plan.planned) {
        Ok(topology) => topology,
        Err(error) => {
            plan.misplaced(error, report);
            return None;
        }
    };
    let virtual_functions = topology.functions().iter().filter_map(|f| f.virtual_of);
    let owners: Vec<usize> = virtual_functions.map(|of| of.physical).collect();
    if owners.len() > MAX_VIRTUAL_FUNCTIONS {
        let message = format!("a machine has at most {MAX_VIRTUAL_FUNCTIONS} virtual functions");
        let last = owners.last().and_then(|owner| plan.origins.get(*owner));
        report.at(last?.mark(), message, "");
        return None;
    }
    let mut units = plan.units(&iommus, report)?;
    for owner in owners {
        if let Some(&Origin::Device(device)) = plan.origins.get(owner) {
            plan.origins.push(Origin::Virtual(device));
            let unit = units.get(owner).copied();
            units.push(unit.unwrap_or(Translation::Unit(0)));
        }
    }
    let groups = groups::number(&topology, &plan.origins, &units, report)?;
    mediated::check(entries, report);
    let machine = assemble(entries, iommus, &plan, &topology, &units, &groups, report);
    Some(machine)
}

fn unique<'a>(
    names: impl Iterator<Item = (&'a String, &'a Mark)>,
    what: &str,
    report: &mut Report,
) {
    let mut seen: BTreeMap<&str, &Mark> = BTreeMap::new();
    for (name, mark) in names {
        if let Some(first) = seen.insert(name, mark) {
            let message = format!("two entries are called {what} `{name}`");
            report.between(mark, message, first, "the other one");
        }
    }
}

/// How many virtual functions a device is to have; `None` if that is reported
/// as impossible.
fn virtual_functions(device: &DeviceEntry, report: &mut Report) -> Option<u16> {
    let asked = device.properties.number(VIRTUAL_FUNCTIONS).unwrap_or(0);
    let most = topology::MAX_VFS;
    if asked > most.into() {
        let message = format!("`{VIRTUAL_FUNCTIONS}` is {asked}: a device has at most {most}");
        report.at(&device.mark, message, "");
        return None;
    }
    if asked > 0 && device.mediated {
        let message = format!("`{VIRTUAL_FUNCTIONS}` is about PCI functions");
        report.at(&device.mark, message, "a mediated device is none");
        return None;
    }
    if asked > 0 && device.driver != Driver::Vfio {
        let label = "only vfio-pci enables them here";
        let message = format!("`{VIRTUAL_FUNCTIONS}` wants the driver vfio-pci");
        report.at(&device.mark, message, label);
        return None;
    }
    u16::try_from(asked).ok()
}

/// The functions as they are asked for, root ports added.
struct Plan<'a> {
    planned: Vec<Planned>,
    origins: Vec<Origin<'a>>,
}

impl<'a> Plan<'a> {
    fn new(entries: &'a Entries, report: &mut Report) -> Option<Self> {
        let mut plan = Self {
            planned: Vec::new(),
            origins: Vec::new(),
        };
        let devices = entries.devices.iter();
        let vfs = devices.map(|device| virtual_functions(device, report));
        let vfs: Vec<Option<u16>> = vfs.collect();
        let mut complete = vfs.iter().all(Option::is_some);
        let bridge_names = || entries.bridges.iter().map(|bridge| bridge.name.as_str());
        let mut behind = |name: Option<&Located<String>>| {
            let name = name?;
            let found = bridge_names().position(|bridge| bridge == name.value);
            if found.is_none() {
                entries::unknown_name(report, "bridge", name, bridge_names());
                complete = false;
            }
            found
        };
        for bridge in &entries.bridges {
            let parent = behind(bridge.behind.as_ref());
            plan.add(Origin::Bridge(bridge), parent, bridge.acs);
        }
        let mut ports: BTreeMap<(u16, u8), usize> = BTreeMap::new();
        let devices = entries.devices.iter().zip(vfs.into_iter().flatten());
        for (device, vfs) in devices.filter(|(device, _)| !device.mediated) {
            let at = device.at.as_ref().map(|at| at.value);
            let integrated = at.is_some_and(|at| at.requester.bus() == 0);
            let parent = match &device.behind {
                Some(name) => behind(Some(name)),
                None if integrated => None,
                None => {
                    let bus = at.map(|at| (at.segment, at.requester.bus()));
                    let known = bus.and_then(|bus| ports.get(&bus).copied());
                    let port =
                        known.unwrap_or_else(|| plan.add(Origin::OwnPort(device), None, true));
                    ports.extend(bus.map(|bus| (bus, port)));
                    Some(port)
                }
            };
            let index = plan.add(Origin::Device(device), parent, device.acs);
            if let Some(planned) = plan.planned.get_mut(index) {
                planned.vfs = vfs;
            }
        }
        complete.then_some(plan)
    }

    fn add(&mut self, origin: Origin<'a>, parent: Option<usize>, acs: bool) -> usize {
        let kind = match origin {
            Origin::Bridge(bridge) => topology::FunctionKind::Bridge(bridge.kind),
            Origin::OwnPort(_) => topology::FunctionKind::Bridge(BridgeKind::RootPort),
            Origin::Device(_) | Origin::Virtual(_) => topology::FunctionKind::Endpoint,
        };
        let at = origin.at().map(|at| at.value);
        self.planned.push(Planned {
            kind,
            parent,
            segment: at.map_or(0, |at| at.segment),
            at: at.filter(|_| !matches!(origin, Origin::OwnPort(_))),
            acs,
            vfs: 0,
        });
        self.origins.push(origin);
        self.origins.len().saturating_sub(1)
    }

    fn misplaced(&self, error: topology::TopologyError, report: &mut Report) {
        let Some(&origin) = self.origins.get(error.function) else {
            return;
        };
        let mark = origin.at().map_or(origin.mark(), |at| &at.mark);
        let message = format!("{} cannot be placed: {}", origin.name(), error.reason);
        match error.other.and_then(|other| self.origins.get(other)) {
            Some(other) => {
                let place = other.at().map_or(other.mark(), |at| &at.mark);
                report.between(mark, message, place, format!("{} is here", other.name()));
            }
            None => report.at(mark, message, ""),
        }
    }

    /// For every function the unit that translates it: its own, or that of the
    /// nearest bridge above that names one, or the first.
    fn units(&self, iommus: &[model::Iommu], report: &mut Report) -> Option<Vec<Translation>> {
        let names = || iommus.iter().map(|iommu| iommu.name.as_str());
        let mut complete = true;
        let own: Vec<Option<Translation>> = self
            .origins
            .iter()
            .map(|origin| {
                let name = origin.iommu()?;
                if name.value == tables::NO_UNIT {
                    return Some(Translation::None);
                }
                let found = names().position(|iommu| iommu == name.value);
                if found.is_none() && !matches!(origin, Origin::OwnPort(_)) {
                    entries::unknown_name(report, "IOMMU", name, names());
                }
                complete &= found.is_some();
                found.map(Translation::Unit)
            })
            .collect();
        let parent = |&of: &usize| self.planned.get(of).and_then(|plan| plan.parent);
        let unit = |of| {
            let mut upwards = std::iter::successors(Some(of), parent);
            upwards
                .find_map(|at| own.get(at).copied().flatten())
                .unwrap_or(Translation::Unit(0))
        };
        complete.then(|| (0..self.origins.len()).map(unit).collect())
    }
}

fn assemble(
    entries: &Entries,
    iommus: Vec<model::Iommu>,
    plan: &Plan<'_>,
    topology: &Topology,
    units: &[Translation],
    groups: &[u32],
    report: &mut Report,
) -> Machine {
    let mut order: Vec<usize> = (0..plan.origins.len()).collect();
    order.sort_by_key(|&index| topology.functions().get(index).map(|f| f.address));
    let position = |index: usize| order.iter().position(|&at| at == index);
    let is_virtual = |index: &usize| matches!(plan.origins.get(*index), Some(Origin::Virtual(_)));
    // Virtual functions come last: the others' numbers are the same without.
    let mut last: Vec<usize> = order.clone();
    last.sort_by_key(is_virtual);
    let bound = last.iter().filter(|index| match plan.origins.get(**index) {
        Some(Origin::Device(device) | Origin::Virtual(device)) => device.driver == Driver::Vfio,
        _ => false,
    });
    let mut numbers = 0u32..;
    let cdevs: BTreeMap<usize, u32> = bound.copied().zip(&mut numbers).collect();
    let default_iommu = entries.iommus.is_empty();
    let mut functions = Vec::new();
    for &index in &order {
        let (Some(origin), Some(placed)) =
            (plan.origins.get(index), topology.functions().get(index))
        else {
            continue;
        };
        let translation = units.get(index).copied().unwrap_or(Translation::Unit(0));
        let ats = ats(*origin, translation, &iommus, report);
        let (kind, driver) = entry(*origin, cdevs.get(&index).copied(), ats);
        functions.push(FunctionEntry {
            kind,
            placed: topology::Placed {
                parent: placed.parent.and_then(position),
                virtual_of: placed.virtual_of.and_then(|of| {
                    Some(topology::VirtualOf {
                        physical: position(of.physical)?,
                        ..of
                    })
                }),
                ..*placed
            },
            aliases: topology.aliases(index),
            group: groups.get(index).copied().unwrap_or_default(),
            driver,
            translation,
        });
    }
    mediated::add(entries, &mut functions, &mut numbers, report);
    Machine {
        memlock: entries.memlock,
        dma_entry_limit: entries.dma_entry_limit.unwrap_or(DMA_ENTRY_LIMIT),
        iommus,
        default_iommu,
        groups: groups::collect(&functions),
        functions,
    }
}

/// Whether a device asks its unit for translations: if the unit answers, unless
/// the device's entry says no.
fn ats(
    origin: Origin<'_>,
    translation: Translation,
    iommus: &[model::Iommu],
    report: &mut Report,
) -> bool {
    let (Origin::Device(device) | Origin::Virtual(device)) = origin else {
        return false;
    };
    let unit = match translation {
        Translation::Unit(unit) => iommus.get(unit),
        Translation::Emulated | Translation::None => None,
    };
    let answers = unit.is_some_and(|unit| match &unit.kind {
        IommuKind::Vtd(vtd) => vtd.ats,
        IommuKind::Generic => false,
    });
    if let Some(ats) = device.ats.as_ref().filter(|ats| ats.value && !answers) {
        let label = "it needs a unit of `kind = \"vtd\"` with `ats = true`";
        report.at(&ats.mark, "nobody answers translation requests here", label);
    }
    answers && device.ats.as_ref().is_none_or(|ats| ats.value)
}

fn entry(origin: Origin<'_>, cdev: Option<u32>, ats: bool) -> (FunctionKind, Driver) {
    let bridge = |name, kind| {
        let driver = match kind {
            BridgeKind::PcieToPci | BridgeKind::PciToPci => Driver::None,
            _ => Driver::Port,
        };
        let entry = model::BridgeEntry { name, kind };
        (FunctionKind::Bridge(entry), driver)
    };
    match origin {
        Origin::Bridge(entry) => bridge(Some(entry.name.clone()), entry.kind),
        Origin::OwnPort(_) => bridge(None, BridgeKind::RootPort),
        Origin::Device(device) | Origin::Virtual(device) => {
            let entry = model::DeviceEntry {
                model: device.model.clone(),
                name: device.name.clone(),
                properties: device.properties.clone(),
                place: device.mark.location(),
                cdev,
                mmio: device.mmio,
                ats,
                mediated: None,
            };
            (FunctionKind::Device(entry), device.driver.clone())
        }
    }
}
