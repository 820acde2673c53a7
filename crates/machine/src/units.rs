//! Kinds of IOMMUs: what `[[iommu]]` may say of each.
use crate::entries::IommuEntry;
use crate::fields::{Field, Raw, Table, shown};
use crate::model::{Iommu, IommuKind, Reserved, ReservedKind, Vtd};
use crate::{diagnostic::suggest, tables};
use iogate_dma::Source;

/// Pages that VT-d's tables have: 4 KiB, 2 MiB and 1 GiB.
const VTD_PAGES: [u64; 3] = [1 << 12, 1 << 12 | 1 << 21, 1 << 12 | 1 << 21 | 1 << 30];
/// Fault recording registers that the page of registers has room for.
const FAULT_RECORDS: u64 = 222;

const KINDS: [&str; 2] = ["generic", "vtd"];
const VTD_KEYS: [&str; 13] = [
    "name",
    "kind",
    "at",
    "mode",
    "iova-bits",
    "page-sizes",
    "first-stage",
    "nested",
    "ats",
    "page-requests",
    "pasid-bits",
    "snoop-control",
    "caching-mode",
];
const FAULT_RECORDS_KEY: &str = "fault-records";

/// Which kind a table is of; `None` if that is reported as wrong.
pub(crate) fn is_vtd(table: &mut Table<'_, '_>) -> Option<bool> {
    let Some(field) = table.field("kind") else {
        return Some(false);
    };
    let name = match &field.value {
        Raw::Text(text) => text.as_str(),
        _ => "",
    };
    if !KINDS.contains(&name) {
        let message = format!("there is no IOMMU of kind `{}` here", shown(name));
        table.report.at(&field.mark, message, suggest(name, KINDS));
        return None;
    }
    Some(name == "vtd")
}

/// A unit as Intel VT-d has it.
pub(crate) fn vtd(mut table: Table<'_, '_>) -> Option<IommuEntry> {
    let known: Vec<&str> = VTD_KEYS.into_iter().chain([FAULT_RECORDS_KEY]).collect();
    table.only(&known);
    let name = tables::unit_name(&mut table);
    let at = table.field("at").and_then(|field| place(&mut table, field));
    let scalable = match table.field("mode") {
        Some(field) => table.choice(field, &["legacy", "scalable"])? == 1,
        None => false,
    };
    let iova_bits = match table.field("iova-bits") {
        Some(field) => table.integer(field, 39..=57).and_then(|bits| match bits {
            39 | 48 | 57 => u8::try_from(bits).ok(),
            _ => {
                table.bad(field, "a VT-d unit has 39, 48 or 57 bits");
                None
            }
        }),
        None => Some(48),
    };
    let page_sizes = match table.field("page-sizes") {
        Some(field) => {
            let sizes = tables::page_sizes(&mut table, field);
            if sizes != 0 && !VTD_PAGES.contains(&sizes) {
                let label = "VT-d has 4 KiB, then 2 MiB, then 1 GiB";
                table.bad(field, label);
            }
            sizes
        }
        None => tables::DEFAULT_PAGE_SIZES,
    };
    let first_stage = said(&mut table, "first-stage", scalable);
    let has_first_stage = scalable && first_stage != Some(false);
    let nested = said(&mut table, "nested", has_first_stage);
    let ats = said(&mut table, "ats", true).unwrap_or(false);
    let page_requests = said(&mut table, "page-requests", scalable && ats).unwrap_or(false);
    let pasid_bits = match table.field("pasid-bits") {
        Some(field) => {
            let bits = table.integer(field, 1..=20)?;
            needs(&mut table, field, scalable);
            u8::try_from(bits).ok()?
        }
        None if scalable => 20,
        None => 0,
    };
    let snoop_control = said(&mut table, "snoop-control", true).unwrap_or(false);
    let caching_mode = said(&mut table, "caching-mode", true).unwrap_or(true);
    let fault_records = match table.field(FAULT_RECORDS_KEY) {
        Some(field) => table.integer(field, 1..=FAULT_RECORDS)?,
        None => 8,
    };
    let name = name?;
    let window = tables::x86_window().map(|span| Reserved {
        span,
        kind: ReservedKind::Msi,
    });
    Some(IommuEntry {
        mark: name.mark,
        iommu: Iommu {
            name: name.value,
            kind: IommuKind::Vtd(Vtd {
                at,
                scalable,
                first_stage,
                nested,
                ats,
                page_requests,
                snoop_control,
                caching_mode,
                fault_records: u16::try_from(fault_records).ok()?,
            }),
            iova_bits: iova_bits?,
            page_sizes,
            reserved: window.into_iter().collect(),
            coherent: snoop_control,
            dirty_tracking: false,
            pasid_bits,
        },
    })
}

/// What is said of a switch that can be turned on where `possible` says so.
fn said(table: &mut Table<'_, '_>, key: &str, possible: bool) -> Option<bool> {
    let field = table.field(key)?;
    let yes = table.boolean(field)?.value;
    if yes {
        needs(table, field, possible);
    }
    Some(yes)
}

/// Reports a key that stands without what it needs.
fn needs(table: &mut Table<'_, '_>, field: &Field<'_>, possible: bool) {
    let label = match field.key.as_str() {
        "page-requests" => "it needs `mode = \"scalable\"` and `ats = true`",
        "nested" => "it needs `mode = \"scalable\"` and a first stage",
        _ => "it needs `mode = \"scalable\"`",
    };
    if !possible {
        let message = format!("`{}` is not possible here", field.key);
        table.report.at(&field.mark, message, label);
    }
}

/// The address of the function that has the unit's registers.
fn place<'a>(table: &mut Table<'a, '_>, field: &'a Field<'a>) -> Option<Source> {
    let at = table.source(field)?;
    let integrated = at.value.segment == 0 && at.value.requester.bus() == 0;
    if !integrated {
        table.bad(field, "a unit's function stands on bus 00 of segment 0000");
    }
    integrated.then_some(at.value)
}
