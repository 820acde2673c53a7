//! The keys of `[[iommu]]`, `[[bridge]]` and `[[device]]`, and what their
//! values have to be.
use crate::diagnostic::{Mark, suggest};
use crate::entries::{BridgeEntry, DeviceEntry, IommuEntry};
use crate::fields::{Field, Located, Model, Raw, Table, shown};
use crate::model::{Driver, Iommu, IommuKind, Mmio, Reserved, ReservedKind};
use crate::{MAX_RESERVED, mediated, units};
use iogate_dma::{Iova, Span};
use iogate_pci::topology::BridgeKind;

/// Interrupt messages of x86: Intel SDM volume 3 section 11.11.1.
const X86_MSI: (u64, u64) = (0xfee0_0000, 0xfeef_ffff);
/// Where Linux puts the window for doorbells on Arm: `MSI_IOVA_BASE` and
/// `MSI_IOVA_LENGTH` in drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3.h.
const SOFTWARE_MSI: (u64, u64) = (0x0800_0000, 0x080f_ffff);
/// 4 KiB, 2 MiB and 1 GiB, the leaves of x86 page tables.
pub(crate) const DEFAULT_PAGE_SIZES: u64 = 1 << 12 | 1 << 21 | 1 << 30;
/// What `iommu` names where there is no unit.
pub(crate) const NO_UNIT: &str = "none";
/// The smallest page that Linux maps on x86; reserved ranges consist of these.
const PAGE: u64 = 4096;

pub(crate) fn iommu(mut table: Table<'_, '_>) -> Option<IommuEntry> {
    if units::is_vtd(&mut table)? {
        return units::vtd(table);
    }
    table.only(&[
        "name",
        "kind",
        "iova-bits",
        "page-sizes",
        "msi-window",
        "coherency",
        "dirty-tracking",
        "pasid-bits",
        "reserved",
    ]);
    let name = unit_name(&mut table);
    let iova_bits = match table.field("iova-bits") {
        Some(field) => table.integer(field, 12..=64),
        None => Some(48),
    };
    let page_sizes = match table.field("page-sizes") {
        Some(field) => page_sizes(&mut table, field),
        None => DEFAULT_PAGE_SIZES,
    };
    let coherent = match table.field("coherency") {
        Some(field) => table.boolean(field).is_some_and(|b| b.value),
        None => true,
    };
    let dirty_tracking = table.field("dirty-tracking");
    let dirty_tracking = dirty_tracking.and_then(|field| table.boolean(field));
    let pasid_bits = match table.field("pasid-bits") {
        Some(field) => table.integer(field, 0..=20),
        None => Some(0),
    };
    let reserved = reserved(&mut table);
    let name = name?;
    Some(IommuEntry {
        mark: name.mark,
        iommu: Iommu {
            name: name.value,
            kind: IommuKind::Generic,
            iova_bits: u8::try_from(iova_bits?).ok()?,
            page_sizes,
            reserved,
            coherent,
            dirty_tracking: dirty_tracking.is_some_and(|yes| yes.value),
            pasid_bits: u8::try_from(pasid_bits?).ok()?,
        },
    })
}

/// The name of a unit.
pub(crate) fn unit_name(table: &mut Table<'_, '_>) -> Option<Located<String>> {
    let name = table.needed("name").and_then(|field| table.name(field));
    if let Some(name) = name.as_ref().filter(|name| name.value == NO_UNIT) {
        let label = "`iommu = \"none\"` says that there is no unit";
        table
            .report
            .at(&name.mark, "no IOMMU can be called `none`", label);
    }
    name
}

/// Where x86 has its interrupt messages.
pub(crate) fn x86_window() -> Option<Span> {
    Span::new(Iova(X86_MSI.0), Iova(X86_MSI.1))
}

/// The unit of a machine that names none.
pub(crate) fn default_iommu() -> Iommu {
    Iommu {
        name: "iommu0".to_owned(),
        kind: IommuKind::Generic,
        iova_bits: 48,
        page_sizes: DEFAULT_PAGE_SIZES,
        reserved: range(X86_MSI.0, X86_MSI.1, ReservedKind::Msi)
            .into_iter()
            .collect(),
        coherent: true,
        dirty_tracking: false,
        pasid_bits: 0,
    }
}

pub(crate) fn page_sizes<'a>(table: &mut Table<'a, '_>, field: &'a Field<'a>) -> u64 {
    const SMALLEST: u64 = 512;
    let mut bitmap = 0;
    for size in table.sizes(field).unwrap_or_default() {
        if size.value.is_power_of_two() && size.value >= SMALLEST {
            bitmap |= size.value;
        } else {
            let label = "a page size is a power of two from 512 bytes on";
            table.report.at(&size.mark, "bad page size", label);
        }
    }
    if bitmap == 0 {
        table.bad(field, "there has to be a page size");
    }
    bitmap
}

fn range(first: u64, last: u64, kind: ReservedKind) -> Option<Reserved> {
    let span = Span::new(Iova(first), Iova(last))?;
    Some(Reserved { span, kind })
}

/// The MSI window and the `reserved` list, in ascending order.
fn reserved(table: &mut Table<'_, '_>) -> Vec<Reserved> {
    let mut found: Vec<(Reserved, Mark)> = Vec::new();
    let mut add = |table: &mut Table<'_, '_>, new: Reserved, mark: &Mark| {
        if let Some((old, first)) = found.iter().find(|(r, _)| r.span.overlaps(&new.span)) {
            let message = format!("the range {} overlaps {}", new.span, old.span);
            table
                .report
                .between(mark, message, first, "the other range");
            return;
        }
        found.push((new, mark.clone()));
    };
    match table.field("msi-window") {
        Some(field) => {
            if let Some(window) = msi_window(table, field) {
                add(table, window, &field.mark);
            }
        }
        None => {
            let window = range(X86_MSI.0, X86_MSI.1, ReservedKind::Msi);
            if let Some(window) = window {
                let mark = table.mark;
                add(table, window, mark);
            }
        }
    }
    if let Some(field) = table.field("reserved") {
        let mut tables = table.tables(field);
        if tables.len() > MAX_RESERVED {
            table.bad(field, "an IOMMU has at most 256 reserved ranges");
            tables.truncate(MAX_RESERVED);
        }
        for (fields, mark) in tables {
            let inner = Table {
                what: "the reserved range",
                mark,
                fields,
                report: table.report,
            };
            if let Some(region) = region(inner) {
                add(table, region, mark);
            }
        }
    }
    found.sort_by_key(|(reserved, _)| reserved.span.first());
    found.into_iter().map(|(reserved, _)| reserved).collect()
}

fn msi_window<'a>(table: &mut Table<'a, '_>, field: &'a Field<'a>) -> Option<Reserved> {
    if let Raw::Table(fields) = &field.value {
        let mut window = Table {
            what: "the MSI window",
            mark: &field.mark,
            fields,
            report: table.report,
        };
        window.only(&["base", "size"]);
        let base = window.needed("base").and_then(|f| window.address(f))?;
        let size = window
            .needed("size")
            .and_then(|f| window.size(f, PAGE..=u64::MAX))?;
        let last = base.checked_add(size.checked_sub(1)?);
        let window = last.and_then(|last| range(base, last, ReservedKind::SoftwareMsi));
        if window.is_none() {
            table.bad(field, "the window passes the end of the address space");
        }
        return window.filter(|window| whole_pages(table, window, &field.mark));
    }
    match table.choice(field, &["x86", "software", "none"])? {
        0 => range(X86_MSI.0, X86_MSI.1, ReservedKind::Msi),
        1 => range(SOFTWARE_MSI.0, SOFTWARE_MSI.1, ReservedKind::SoftwareMsi),
        _ => None,
    }
}

fn region(mut table: Table<'_, '_>) -> Option<Reserved> {
    const KINDS: [ReservedKind; 3] = [
        ReservedKind::Direct,
        ReservedKind::DirectRelaxable,
        ReservedKind::Reserved,
    ];
    table.only(&["start", "end", "type"]);
    let start = table.needed("start").and_then(|f| table.address(f));
    let end = table.needed("end").and_then(|f| table.address(f));
    let kind = table.needed("type").and_then(|f| {
        let at = table.choice(f, &KINDS.map(ReservedKind::name))?;
        KINDS.get(at).copied()
    });
    let (start, end, kind) = (start?, end?, kind?);
    let mark = table.mark;
    let Some(reserved) = range(start, end, kind) else {
        table.report.at(mark, "the range ends before it starts", "");
        return None;
    };
    whole_pages(&mut table, &reserved, mark).then_some(reserved)
}

fn whole_pages(table: &mut Table<'_, '_>, reserved: &Reserved, mark: &Mark) -> bool {
    let aligned = |address: u64| address.is_multiple_of(PAGE);
    let whole = aligned(reserved.span.first().0) && aligned(reserved.span.last().0.wrapping_add(1));
    if !whole {
        let label = "it starts at a multiple of 4096 and its last byte is before one";
        table
            .report
            .at(mark, "the range is not of whole pages", label);
    }
    whole
}

const BRIDGE_KINDS: [(&str, BridgeKind); 5] = [
    ("root-port", BridgeKind::RootPort),
    ("upstream-port", BridgeKind::UpstreamPort),
    ("downstream-port", BridgeKind::DownstreamPort),
    ("pcie-pci-bridge", BridgeKind::PcieToPci),
    ("pci-bridge", BridgeKind::PciToPci),
];

/// The name of a kind of bridge in the machine file.
pub(crate) fn bridge_kind_name(kind: BridgeKind) -> &'static str {
    let found = BRIDGE_KINDS.iter().find(|(_, k)| *k == kind);
    found.map_or("bridge", |(name, _)| name)
}

pub(crate) fn bridge(mut table: Table<'_, '_>) -> Option<BridgeEntry> {
    table.only(&["name", "kind", "behind", "at", "acs", "iommu"]);
    let name = table.needed("name").and_then(|field| table.name(field));
    let kind = table.needed("kind").and_then(|field| {
        let at = table.choice(field, &BRIDGE_KINDS.map(|(name, _)| name))?;
        BRIDGE_KINDS.get(at).map(|(_, kind)| *kind)
    });
    let behind = text_of(&mut table, "behind");
    let iommu = text_of(&mut table, "iommu");
    let at = table.field("at").and_then(|field| table.source(field));
    let acs = table.field("acs").and_then(|field| table.boolean(field));
    let (name, kind) = (name?, kind?);
    let conventional = matches!(kind, BridgeKind::PcieToPci | BridgeKind::PciToPci);
    if let Some(acs) = acs.as_ref().filter(|acs| acs.value && conventional) {
        let message = format!("a {} has no ACS", bridge_kind_name(kind));
        let label = "all behind a conventional bus is one group";
        table.report.at(&acs.mark, message, label);
    }
    let default_acs = matches!(kind, BridgeKind::RootPort | BridgeKind::DownstreamPort);
    Some(BridgeEntry {
        mark: name.mark,
        name: name.value,
        kind,
        behind,
        at,
        acs: acs.map_or(default_acs, |acs| acs.value),
        iommu,
    })
}

const DEVICE_KEYS: [&str; 12] = [
    "model", "name", "behind", "at", "group", "driver", "iommu", "ats", "acs", "mmio", "mediated",
    "uuid",
];

pub(crate) fn device(mut table: Table<'_, '_>, models: &[Model]) -> Option<DeviceEntry> {
    let Some(field) = table.needed("model") else {
        let all = models.iter().flat_map(|m| &m.properties).map(|p| p.name);
        table.only(&all.chain(DEVICE_KEYS).collect::<Vec<_>>());
        return None;
    };
    let model_name = table.text(field)?;
    let Some(model) = models.iter().find(|m| m.name == model_name.value) else {
        let message = format!("there is no device model `{}`", shown(&model_name.value));
        let hint = suggest(&model_name.value, models.iter().map(|m| m.name));
        table.report.at(&model_name.mark, message, hint);
        return None;
    };
    let own = model.properties.iter().map(|p| p.name);
    let known: Vec<&str> = own.chain(DEVICE_KEYS).collect();
    table.only(&known);
    let (mediated, uuid) = mediated::keys(&mut table);
    let name = table.field("name").and_then(|field| table.name(field));
    let behind = text_of(&mut table, "behind");
    let iommu = text_of(&mut table, "iommu");
    let at = table.field("at").and_then(|field| table.source(field));
    let acs = table.field("acs").and_then(|field| table.boolean(field));
    let ats = table.field("ats").and_then(|field| table.boolean(field));
    let group = table.field("group").and_then(|field| {
        let number = table.integer(field, 0..=u64::from(u16::MAX))?;
        Some(Located {
            value: u32::try_from(number).ok()?,
            mark: field.mark.clone(),
        })
    });
    let driver = match table.field("driver") {
        Some(field) => match table.name(field)?.value.as_str() {
            "vfio-pci" => Driver::Vfio,
            "none" => Driver::None,
            other => Driver::Host(other.to_owned()),
        },
        None => Driver::Vfio,
    };
    let mmio = match table.field("mmio") {
        Some(field) => match table.choice(field, &["trap", "map"]) {
            Some(1) => Mmio::Map,
            _ => Mmio::Trap,
        },
        None => Mmio::Trap,
    };
    Some(DeviceEntry {
        mark: model_name.mark,
        model: model_name.value,
        name: name.map(|name| name.value),
        properties: table.properties(model),
        behind,
        at,
        group,
        driver,
        mmio,
        acs: acs.is_some_and(|acs| acs.value),
        iommu,
        ats,
        mediated,
        uuid,
    })
}

fn text_of(table: &mut Table<'_, '_>, key: &str) -> Option<Located<String>> {
    let field = table.field(key)?;
    table.text(field)
}
