//! What the file and the arguments ask for, entry by entry, before anything
//! has a place.
use crate::diagnostic::{Form, Mark, Origin, Report, suggest};
use crate::fields::{Field, Located, Model, Raw, Table, shown};
use crate::model::{Driver, Iommu, Memlock, Mmio, Properties};
use crate::{MAX_BRIDGES, MAX_DEVICES, MAX_FILE_BYTES, MAX_IOMMUS, Text, argument, tables};
use iogate_dma::Source;
use iogate_pci::topology::BridgeKind;
use std::sync::Arc;
use toml::de::{DeTable, DeValue};

pub(crate) struct IommuEntry {
    pub(crate) mark: Mark,
    pub(crate) iommu: Iommu,
}

pub(crate) struct BridgeEntry {
    pub(crate) mark: Mark,
    pub(crate) name: String,
    pub(crate) kind: BridgeKind,
    pub(crate) behind: Option<Located<String>>,
    pub(crate) at: Option<Located<Source>>,
    pub(crate) acs: bool,
    pub(crate) iommu: Option<Located<String>>,
}

pub(crate) struct DeviceEntry {
    pub(crate) mark: Mark,
    pub(crate) model: String,
    pub(crate) name: Option<String>,
    pub(crate) properties: Properties,
    pub(crate) behind: Option<Located<String>>,
    pub(crate) at: Option<Located<Source>>,
    pub(crate) group: Option<Located<u32>>,
    pub(crate) driver: Driver,
    pub(crate) mmio: Mmio,
    pub(crate) acs: bool,
    pub(crate) iommu: Option<Located<String>>,
    pub(crate) ats: Option<Located<bool>>,
    pub(crate) mediated: bool,
    pub(crate) uuid: Option<Located<String>>,
}

#[derive(Default)]
pub(crate) struct Entries {
    pub(crate) memlock: Memlock,
    pub(crate) dma_entry_limit: Option<u32>,
    pub(crate) iommus: Vec<IommuEntry>,
    pub(crate) bridges: Vec<BridgeEntry>,
    pub(crate) devices: Vec<DeviceEntry>,
}

/// Reads every entry that can be read; what cannot is in the report.
pub(crate) fn read(
    file: Option<Text<'_>>,
    arguments: &[String],
    models: &[Model],
    report: &mut Report,
) -> Entries {
    let mut entries = Entries::default();
    if let Some(file) = file {
        read_file(file, models, &mut entries, report);
    }
    let default: Vec<String> = crate::DEFAULT_DEVICES.map(str::to_owned).to_vec();
    let arguments = match (file, arguments) {
        (None, []) => &default,
        _ => arguments,
    };
    for argument in arguments {
        let (fields, mark) = argument::fields(argument, report);
        let table = Table {
            what: "--device",
            mark: &mark,
            fields: &fields,
            report,
        };
        entries.devices.extend(tables::device(table, models));
        if entries.devices.len() > MAX_DEVICES {
            let message = format!("a machine has at most {MAX_DEVICES} devices");
            report.at(&mark, message, "");
            break;
        }
    }
    entries
}

fn read_file(file: Text<'_>, models: &[Model], entries: &mut Entries, report: &mut Report) {
    let whole = |text: &str| {
        Arc::new(Origin {
            name: file.name.to_owned(),
            text: text.to_owned(),
            form: Form::File,
        })
    };
    if file.bytes.len() > MAX_FILE_BYTES {
        let mark = Mark {
            origin: whole(""),
            range: 0..0,
        };
        let message = format!("a machine file has at most {MAX_FILE_BYTES} bytes");
        return report.at(&mark, message, "");
    }
    let text = match std::str::from_utf8(file.bytes) {
        Ok(text) => text,
        Err(error) => {
            let at = error.valid_up_to();
            let valid = file.bytes.get(..at).unwrap_or_default();
            let mark = Mark {
                origin: whole(&String::from_utf8_lossy(valid)),
                range: at..at,
            };
            return report.at(&mark, "this is no UTF-8 text", "not UTF-8 from here on");
        }
    };
    let origin = whole(text);
    let parsed = match DeTable::parse(text) {
        Ok(parsed) => parsed,
        Err(error) => {
            let mark = Mark {
                origin,
                range: error.span().unwrap_or(0..0),
            };
            return report.at(&mark, error.message().trim(), "");
        }
    };
    let mark = Mark {
        origin: Arc::clone(&origin),
        range: 0..0,
    };
    let fields = fields_of(parsed.get_ref(), &origin);
    read_top(&fields, &mark, models, entries, report);
}

fn read_top(
    fields: &[Field<'_>],
    mark: &Mark,
    models: &[Model],
    entries: &mut Entries,
    report: &mut Report,
) {
    let mut top = Table {
        what: "the machine file",
        mark,
        fields,
        report,
    };
    let known = [
        "version",
        "memlock",
        "dma_entry_limit",
        "iommu",
        "bridge",
        "device",
    ];
    top.only(&known);
    if let Some(field) = top.needed("version") {
        top.integer(field, 1..=1);
    }
    if let Some(field) = top.field("memlock") {
        entries.memlock = match top.choice(field, &["off", "enforce"]) {
            Some(1) => Memlock::Enforce,
            _ => Memlock::Off,
        };
    }
    if let Some(field) = top.field("dma_entry_limit") {
        let limit = top.integer(field, 1..=u64::from(u32::MAX));
        entries.dma_entry_limit = limit.and_then(|n| u32::try_from(n).ok());
    }
    let mut list = |key: &str, most: usize| {
        let Some(field) = top.field(key) else {
            return Vec::new();
        };
        let mut tables = top.tables(field);
        if let Some((_, mark)) = tables.get(most) {
            let message = format!("a machine has at most {most} [[{key}]] entries");
            top.report.at(mark, message, "");
            tables.truncate(most);
        }
        tables
    };
    let (iommus, bridges, devices) = (
        list("iommu", MAX_IOMMUS),
        list("bridge", MAX_BRIDGES),
        list("device", MAX_DEVICES),
    );
    let report = top.report;
    for entry in iommus {
        let table = table("[[iommu]]", entry, report);
        entries.iommus.extend(tables::iommu(table));
    }
    for entry in bridges {
        let table = table("[[bridge]]", entry, report);
        entries.bridges.extend(tables::bridge(table));
    }
    for entry in devices {
        let table = table("[[device]]", entry, report);
        entries.devices.extend(tables::device(table, models));
    }
}

fn table<'a, 'r>(
    what: &'static str,
    (fields, mark): (&'a [Field<'a>], &'a Mark),
    report: &'r mut Report,
) -> Table<'a, 'r> {
    Table {
        what,
        mark,
        fields,
        report,
    }
}

fn fields_of<'a>(table: &DeTable<'_>, origin: &Arc<Origin>) -> Vec<Field<'a>> {
    let mark = |range| Mark {
        origin: Arc::clone(origin),
        range,
    };
    let mut fields: Vec<Field<'a>> = table
        .iter()
        .map(|(key, value)| Field {
            key: key.get_ref().to_string(),
            key_mark: mark(key.span()),
            value: raw(value.get_ref(), origin),
            mark: mark(value.span()),
        })
        .collect();
    fields.sort_by_key(|field| field.key_mark.range.start);
    fields
}

/// A value in our own form. The parser bounds how deep it nests.
fn raw<'a>(value: &DeValue<'_>, origin: &Arc<Origin>) -> Raw<'a> {
    match value {
        DeValue::String(text) => Raw::Text(text.to_string()),
        DeValue::Integer(number) => Raw::Integer(number.as_str().to_owned(), number.radix()),
        DeValue::Float(_) => Raw::Other("a fraction"),
        DeValue::Boolean(yes) => Raw::Boolean(*yes),
        DeValue::Datetime(_) => Raw::Other("a date"),
        DeValue::Array(items) => Raw::Array(
            items
                .iter()
                .map(|item| {
                    let mark = Mark {
                        origin: Arc::clone(origin),
                        range: item.span(),
                    };
                    (raw(item.get_ref(), origin), mark)
                })
                .collect(),
        ),
        DeValue::Table(table) => Raw::Table(fields_of(table, origin)),
    }
}

/// Reports a name that nothing has.
pub(crate) fn unknown_name<'n>(
    report: &mut Report,
    what: &str,
    name: &Located<String>,
    known: impl IntoIterator<Item = &'n str>,
) {
    let message = format!("there is no {what} `{}`", shown(&name.value));
    report.at(&name.mark, message, suggest(&name.value, known));
}
