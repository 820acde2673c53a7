//! Mediated devices: software that is no PCI function, known by a UUID and
//! each in a group of its own. Linux drivers/vfio/mdev/mdev_core.c and
//! drivers/vfio/group.c `vfio_noiommu_group_alloc`.
use crate::diagnostic::{Mark, Report};
use crate::entries::{DeviceEntry, Entries};
use crate::fields::{Located, Table};
use crate::model::{self, Driver, FunctionEntry, FunctionKind, Translation};
use iogate_dma::{RequesterId, Source};
use iogate_pci::topology::{self, Placed};
use std::collections::BTreeMap;

/// What is about a PCI function and has no meaning for a mediated device; nor
/// can its group be chosen or another driver hold it.
const OF_FUNCTIONS: [&str; 6] = ["behind", "at", "group", "driver", "iommu", "acs"];
/// The segment in which mediated devices have numbers that no function has.
const SEGMENT: u16 = 0xffff;

/// The keys `mediated` and `uuid` of a device.
pub(crate) fn keys(table: &mut Table<'_, '_>) -> (bool, Option<Located<String>>) {
    let mediated = table.field("mediated");
    let mediated = mediated.and_then(|field| table.boolean(field));
    let is_mediated = mediated.is_some_and(|mediated| mediated.value);
    let mut uuid = None;
    if let Some(field) = table.field("uuid") {
        if !is_mediated {
            table.bad(field, "only a device with `mediated = true` has one");
        }
        uuid = table.text(field);
        if uuid.as_ref().is_some_and(|uuid| !is_uuid(&uuid.value)) {
            table.bad(field, "it looks like 83b8f4f2-509f-4c5e-9a3d-2f1b1c0de001");
        }
    }
    if is_mediated {
        for key in OF_FUNCTIONS {
            if let Some(field) = table.field(key) {
                table.bad(field, "a mediated device is no PCI function");
            }
        }
    }
    (is_mediated, uuid)
}

/// Five groups of hexadecimal digits, as sysfs shows them.
fn is_uuid(text: &str) -> bool {
    let digit = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
    text.split('-').map(str::len).eq([8, 4, 4, 4, 12]) && text.chars().all(|c| c == '-' || digit(c))
}

/// Reports a UUID that two devices have.
pub(crate) fn check(entries: &Entries, report: &mut Report) {
    let mut seen: BTreeMap<&str, &Mark> = BTreeMap::new();
    for uuid in entries.devices.iter().filter_map(|one| one.uuid.as_ref()) {
        if let Some(first) = seen.insert(&uuid.value, &uuid.mark) {
            let message = format!("two devices have the UUID {}", uuid.value);
            report.between(&uuid.mark, message, first, "the other one");
        }
    }
}

/// Adds the mediated devices behind all functions, in their order.
pub(crate) fn add(
    entries: &Entries,
    functions: &mut Vec<FunctionEntry>,
    cdevs: &mut impl Iterator<Item = u32>,
    report: &mut Report,
) {
    let uuids = entries.devices.iter().filter_map(|one| one.uuid.as_ref());
    let uuids: Vec<&str> = uuids.map(|uuid| uuid.value.as_str()).collect();
    let mut given = (0_u64..)
        .map(|number| format!("696f6761-7465-4000-8000-{number:012x}"))
        .filter(|uuid| !uuids.contains(&uuid.as_str()));
    // Behind all functions, whose order is that of their addresses.
    let highest = functions.last().map(FunctionEntry::source);
    let mut numbers = (0..=u16::MAX)
        .map(|number| Source::new(SEGMENT, RequesterId(number)))
        .filter(|source| highest.is_none_or(|highest| *source > highest));
    let last = functions.iter().map(|function| function.group).max();
    let mut groups = last.map_or(0, |last| last.saturating_add(1))..;
    for device in entries.devices.iter().filter(|device| device.mediated) {
        let uuid = device.uuid.as_ref().map(|uuid| uuid.value.clone());
        let (Some(uuid), Some(address), Some(group), Some(cdev)) = (
            uuid.or_else(|| given.next()),
            numbers.next(),
            groups.next(),
            cdevs.next(),
        ) else {
            let message = "the last function of segment ffff leaves no number";
            report.at(&device.mark, message, "");
            return;
        };
        functions.push(entry(device, uuid, (address, group, cdev)));
    }
}

fn entry(
    device: &DeviceEntry,
    uuid: String,
    (address, group, cdev): (Source, u32, u32),
) -> FunctionEntry {
    FunctionEntry {
        kind: FunctionKind::Device(model::DeviceEntry {
            model: device.model.clone(),
            name: device.name.clone(),
            properties: device.properties.clone(),
            place: device.mark.location(),
            cdev: Some(cdev),
            mmio: device.mmio,
            ats: false,
            mediated: Some(uuid),
        }),
        placed: Placed {
            kind: topology::FunctionKind::Endpoint,
            parent: None,
            address,
            buses: None,
            multifunction: false,
            express: true,
            acs: false,
            ari: false,
            virtual_of: None,
        },
        aliases: vec![address.requester],
        group,
        driver: Driver::Vfio,
        translation: Translation::Emulated,
    }
}
