//! Where everything of a machine stands on the guest's root bus, and what is
//! behind which unit.

use std::collections::{BTreeMap, BTreeSet};

use iogate_dma::{RequesterId, Source};
use iogate_machine::{Iommu, IommuKind, Machine, Translation, Vtd};
use iogate_vtd::Capabilities;

use crate::session::{REMOTE, Refusal};

/// Device numbers that are given: QEMU's q35 has its own at 0 and at 31, and
/// gives those from 1 on to what it is asked for.
const FIRST: u8 = 4;
const LAST: u8 = 30;

/// A unit of the guest.
pub(crate) struct PlannedUnit {
    pub(crate) name: String,
    pub(crate) at: RequesterId,
    pub(crate) capabilities: Capabilities,
    /// Bits of an address, for the ACPI table.
    pub(crate) width: u8,
}

/// A device of the guest.
pub(crate) struct PlannedDevice {
    /// Its index in [`Machine::functions`].
    pub(crate) index: usize,
    pub(crate) model: String,
    /// What its socket is called.
    pub(crate) name: String,
    pub(crate) at: RequesterId,
    /// The index of the unit that it is behind, if it is behind one.
    pub(crate) unit: Option<usize>,
    pub(crate) ats: bool,
}

/// The guest's functions.
pub(crate) struct Plan {
    pub(crate) units: Vec<PlannedUnit>,
    pub(crate) devices: Vec<PlannedDevice>,
}

impl Plan {
    /// Gives every function of `machine` a place on the root bus: its own if it
    /// says one there, else the next free device number.
    pub(crate) fn new(machine: &Machine) -> Result<Self, Refusal> {
        let mut places = Places::default();
        let kinds = units(machine)?;
        for (_, unit) in &kinds {
            if let Some(at) = unit.at {
                places.reserve(at)?;
            }
        }
        let mut devices = Vec::new();
        for (index, entry, device) in machine.devices() {
            let place = &device.place;
            if entry.placed.virtual_of.is_some() {
                let what = "virtual functions are for `iogate run`: take away `vfs`";
                return Err(Refusal(format!("{place}: {what}")));
            }
            if device.mediated.is_some() {
                let what = "a mediated device is no PCI function: guests have none";
                return Err(Refusal(format!("{place}: {what}")));
            }
            // A place on another bus is one behind a port, which only the
            // machine of `run` has.
            let source = entry.source();
            let on_root = source.segment == 0 && source.requester.bus() == 0;
            if on_root {
                places.reserve(source)?;
            }
            devices.push((index, device, entry.translation, on_root.then_some(source)));
        }
        let mut planned: Vec<PlannedUnit> = Vec::new();
        for ((name, unit), iommu) in kinds.into_iter().zip(machine.iommus()) {
            let at = places.given_or_next(unit.at)?;
            let is_followed = devices.iter().any(|(_, device, translation, _)| {
                device.model == REMOTE && *translation == Translation::Unit(planned.len())
            });
            let capabilities = capabilities(iommu, &unit, is_followed)
                .map_err(|what| Refusal(format!("IOMMU `{name}`: {what}")))?;
            planned.push(PlannedUnit {
                name,
                at,
                capabilities,
                width: iommu.iova_bits,
            });
        }
        let models: Vec<_> = devices
            .iter()
            .map(|(_, device, ..)| &device.model)
            .collect();
        let models: Vec<String> = models.into_iter().cloned().collect();
        let is_alone = |model: &str| models.iter().filter(|other| *other == model).count() == 1;
        let devices = devices.into_iter().map(|(index, device, translation, at)| {
            let at = places.given_or_next(at)?;
            let name = match &device.name {
                Some(name) => name.clone(),
                None if is_alone(&device.model) => device.model.clone(),
                None => {
                    format!("{}-{:02x}.{}", device.model, at.device(), at.function())
                }
            };
            Ok(PlannedDevice {
                index,
                model: device.model.clone(),
                name,
                at,
                unit: match translation {
                    Translation::Unit(unit) => Some(unit),
                    Translation::Emulated | Translation::None => None,
                },
                ats: device.ats,
            })
        });
        let devices = devices.collect::<Result<_, Refusal>>()?;
        let plan = Self {
            units: planned,
            devices,
        };
        plan.check_names()?;
        Ok(plan)
    }

    /// Every socket has a name of its own.
    fn check_names(&self) -> Result<(), Refusal> {
        let units = self.units.iter().map(|unit| (&unit.name, unit.at));
        let devices = self.devices.iter().map(|device| (&device.name, device.at));
        let mut known = BTreeMap::new();
        for (name, at) in units.chain(devices) {
            if let Some(other) = known.insert(name, at) {
                return Err(Refusal(format!(
                    "the sockets of {other} and {at} would both be called `{name}`: give one \
                     another `name`"
                )));
            }
        }
        Ok(())
    }
}

/// What a unit offers. One that a device of another server is behind has its
/// domains followed, which a guest makes possible by its invalidations.
fn capabilities(
    iommu: &Iommu,
    unit: &Vtd,
    is_followed: bool,
) -> Result<Capabilities, &'static str> {
    if is_followed && !unit.caching_mode {
        return Err("a remote device is behind it, for which it needs `caching-mode = true`");
    }
    if is_followed && unit.first_stage == Some(true) {
        return Err(
            "a remote device is behind it: what a guest adds to first-stage tables it tells \
             nobody, take `first-stage = false`",
        );
    }
    let first_stage = unit.scalable && !is_followed && unit.first_stage != Some(false);
    let mut capabilities = Capabilities::default()
        .address_width(iommu.iova_bits)
        .fault_records(unit.fault_records);
    if unit.scalable {
        capabilities = capabilities.scalable().pasid_bits(iommu.pasid_bits);
    }
    for (wanted, with) in [
        (
            !first_stage,
            Capabilities::without_first_stage as fn(_) -> _,
        ),
        (
            first_stage && unit.nested != Some(false),
            Capabilities::nested,
        ),
        (
            first_stage && iommu.iova_bits == 57,
            Capabilities::first_stage_5_level,
        ),
        (unit.ats, Capabilities::device_tlb),
        (unit.page_requests, Capabilities::page_requests),
        (unit.snoop_control, Capabilities::snoop_control),
        (!unit.caching_mode, Capabilities::without_caching_mode),
        (
            iommu.page_sizes & 1 << 30 == 0,
            Capabilities::without_1g_pages,
        ),
        (
            iommu.page_sizes & 1 << 21 == 0,
            Capabilities::without_large_pages,
        ),
    ] {
        if wanted {
            capabilities = with(capabilities);
        }
    }
    Ok(capabilities)
}

/// The units by name; the one of a machine that names none is a VT-d one, if a
/// device is behind it.
fn units(machine: &Machine) -> Result<Vec<(String, Vtd)>, Refusal> {
    let default = Vtd {
        at: None,
        scalable: false,
        first_stage: None,
        nested: None,
        ats: false,
        page_requests: false,
        snoop_control: false,
        caching_mode: true,
        fault_records: 8,
    };
    let mut devices = machine.devices();
    let is_used = devices.any(|(_, entry, _)| entry.translation == Translation::Unit(0));
    if machine.has_default_iommu() && !is_used {
        return Ok(Vec::new());
    }
    let units = machine.iommus().iter().map(|iommu| match &iommu.kind {
        IommuKind::Vtd(unit) => Ok((iommu.name.clone(), unit.clone())),
        IommuKind::Generic if machine.has_default_iommu() => {
            Ok((iommu.name.clone(), default.clone()))
        }
        IommuKind::Generic => Err(Refusal(format!(
            "IOMMU `{}` is a generic one, which a guest cannot see: give it `kind = \"vtd\"`, or \
             its devices `iommu = \"none\"`",
            iommu.name
        ))),
    });
    units.collect()
}

/// What of the root bus is taken.
#[derive(Default)]
struct Places(BTreeSet<RequesterId>);

impl Places {
    fn reserve(&mut self, at: Source) -> Result<(), Refusal> {
        if self.0.insert(at.requester) {
            return Ok(());
        }
        Err(Refusal(format!("two functions are to stand at {at}")))
    }

    /// The place that was reserved, or the next device number of which no
    /// function is taken.
    fn given_or_next(&mut self, given: Option<Source>) -> Result<RequesterId, Refusal> {
        if let Some(given) = given {
            return Ok(given.requester);
        }
        let taken = |device: u8| self.0.iter().any(|at| at.device() == device);
        let free = (FIRST..=LAST).find(|device| !taken(*device));
        let at = free.and_then(|device| RequesterId::new(0, device, 0));
        let at = at.ok_or_else(|| {
            Refusal(format!(
                "bus 00 has room for {} functions",
                LAST.saturating_sub(FIRST).saturating_add(1)
            ))
        })?;
        self.0.insert(at);
        Ok(at)
    }
}
