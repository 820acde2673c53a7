//! What a machine file and an argument may say, and what is said about those
//! that may not: the place, the mark, the nearest name.
#![allow(clippy::unwrap_used)]
mod common;
use common::{error, load, machine, models};
use iogate_dma::{Iova, Span};
use iogate_machine::{Driver, Machine, Memlock, Mmio, Reserved, ReservedKind, Text, Value};

fn reserved(first: u64, last: u64, kind: ReservedKind) -> Reserved {
    let span = Span::new(Iova(first), Iova(last)).unwrap();
    Reserved { span, kind }
}

#[test]
fn the_issues_example_is_a_machine() {
    let machine = machine(
        r#"
        memlock = "enforce"
        dma_entry_limit = 100
        [[iommu]]
        name = "iommu0"
        kind = "generic"
        iova-bits = 39
        [[bridge]]
        name = "rp0"
        kind = "root-port"
        acs = true
        [[device]]
        model = "nvme"
        behind = "rp0"
        at = "0000:01:00.0"
        group = 3
        size = "64 MiB"
        queues = 0x10
        read-only = true
        serial = "S1"
        "#,
    );
    assert_eq!(machine.memlock(), Memlock::Enforce);
    assert_eq!(machine.dma_entry_limit(), 100);
    assert_eq!(machine.iommus()[0].iova_bits, 39);
    let (_, function, device) = machine.devices().next().unwrap();
    assert_eq!(function.source().to_string(), "0000:01:00.0");
    assert_eq!((function.group, device.cdev), (3, Some(0)));
    assert_eq!(device.properties.number("size"), Some(64 << 20));
    assert_eq!(device.properties.number("queues"), Some(16));
    assert_eq!(device.properties.boolean("read-only"), Some(true));
    assert_eq!(
        device.properties.get("serial"),
        Some(&Value::Text("S1".into()))
    );
    assert_eq!(device.place, "m.toml:14:17");
}

#[test]
fn registers_are_mapped_where_that_is_said() {
    let machine = machine(
        "[[device]]\nmodel = 'edu'\nmmio = 'map'\n\
         [[device]]\nmodel = 'edu'\nmmio = 'trap'\n[[device]]\nmodel = 'edu'",
    );
    let mmio: Vec<_> = machine
        .devices()
        .map(|(_, _, device)| device.mmio)
        .collect();
    assert_eq!(mmio, [Mmio::Map, Mmio::Trap, Mmio::Trap]);
    assert_eq!(machine.describe().matches("mmio=map").count(), 1);
    let text = error("[[device]]\nmodel = 'edu'\nmmio = 'mapp'");
    assert!(text.contains("did you mean `map`?"), "{text}");
}

#[test]
fn what_is_not_said_is_as_on_an_ordinary_x86_machine() {
    let machine = machine("[[device]]\nmodel = 'edu'");
    assert_eq!(machine.memlock(), Memlock::Off);
    assert_eq!(machine.dma_entry_limit(), 65535);
    let [iommu] = machine.iommus() else {
        panic!("one IOMMU");
    };
    assert_eq!((iommu.name.as_str(), iommu.iova_bits), ("iommu0", 48));
    assert_eq!(iommu.page_sizes, 0x4020_1000);
    assert!(iommu.coherent);
    let msi = reserved(0xfee0_0000, 0xfeef_ffff, ReservedKind::Msi);
    assert_eq!(iommu.reserved, [msi]);
}

#[test]
fn the_msi_window_is_that_of_x86_or_in_software_or_none() {
    let window = |says: &str| {
        let file = format!("[[iommu]]\nname = 'i'\nmsi-window = {says}");
        machine(&file).iommus()[0].reserved.clone()
    };
    assert_eq!(window("'none'"), []);
    let x86 = reserved(0xfee0_0000, 0xfeef_ffff, ReservedKind::Msi);
    assert_eq!(window("'x86'"), [x86]);
    let software = reserved(0x800_0000, 0x80f_ffff, ReservedKind::SoftwareMsi);
    assert_eq!(window("'software'"), [software]);
    let here = reserved(0x10_0000, 0x10_0fff, ReservedKind::SoftwareMsi);
    assert_eq!(window("{ base = 0x100000, size = '4 KiB' }"), [here]);
}

#[test]
fn reserved_ranges_are_kept_in_order_up_to_the_last_byte() {
    let machine = machine(
        r#"
        [[iommu]]
        name = "i"
        page-sizes = ["4 KiB", 65536]
        coherency = false
        reserved = [
            { start = "0xfffffffffffff000", end = 0xffffffffffffffff, type = "reserved" },
            { start = 0x1000, end = 0x1fff, type = "direct" },
            { start = 0x2000, end = 0x2fff, type = "direct-relaxable" },
        ]
        "#,
    );
    let iommu = &machine.iommus()[0];
    assert_eq!((iommu.page_sizes, iommu.coherent), (0x11000, false));
    let expected = [
        reserved(0x1000, 0x1fff, ReservedKind::Direct),
        reserved(0x2000, 0x2fff, ReservedKind::DirectRelaxable),
        reserved(0xfee0_0000, 0xfeef_ffff, ReservedKind::Msi),
        reserved(u64::MAX - 0xfff, u64::MAX, ReservedKind::Reserved),
    ];
    assert_eq!(iommu.reserved, expected);
}

#[test]
fn a_unit_tells_apart_pasids_of_up_to_20_bits() {
    let unit = |says: &str| format!("[[iommu]]\nname = 'i'\n{says}");
    let bits = |says: &str| machine(&unit(says)).iommus()[0].pasid_bits;
    assert_eq!((bits(""), bits("pasid-bits = 20")), (0, 20));
    assert!(error(&unit("pasid-bits = 21")).contains("20"));
}

#[test]
fn reserved_ranges_that_are_none_are_refused() {
    let refused = |says: &str| error(&format!("[[iommu]]\nname = 'i'\nreserved = [{says}]"));
    let overlap = "{ start = 0xfee00000, end = 0xfee00fff, type = 'direct' }";
    assert!(refused(overlap).contains("overlaps 0xfee00000-0xfeefffff"));
    let backwards = "{ start = 0x2000, end = 0x1fff, type = 'direct' }";
    assert!(refused(backwards).contains("ends before it starts"));
    let ragged = "{ start = 0x2000, end = 0x2ffe, type = 'direct' }";
    assert!(refused(ragged).contains("not of whole pages"));
    let other = "{ start = 0, end = 0xfff, type = 'dircet' }";
    assert!(refused(other).contains("did you mean `direct`?"));
}

#[test]
fn a_finding_shows_file_line_column_and_the_nearest_name() {
    let expected = "\
m.toml:4:1: unknown key `sise` in [[device]]
  4 | sise = '64 MiB'
    | ^^^^ did you mean `size`?";
    assert_eq!(
        error("[[device]]\nmodel = 'nvme'\nsise = '64 MiB'"),
        expected
    );
    let expected = "\
m.toml:3:9: there is no device model `nvem`
  3 | model = 'nvem'
    |         ^^^^^^ did you mean `nvme`?";
    assert_eq!(error("[[device]]\nmodel = 'nvem'"), expected);
}

#[test]
fn each_of_these_is_refused_where_it_is_wrong() {
    for (file, place, what) in [
        ("versoin = 1", "2:1", "unknown key `versoin`"),
        ("memlock = 'on'", "2:11", "`memlock` cannot be `on`"),
        (
            "memlock = 1",
            "2:11",
            "`memlock` wants a text, not a number",
        ),
        ("dma_entry_limit = 0", "2:19", "not from 1 to"),
        ("dma_entry_limit = -1", "2:19", "cannot be negative"),
        ("device = 'edu'", "2:10", "wants a list of tables"),
        ("device = ['edu']", "2:11", "wants tables, not a text"),
        ("[[device]]", "2:1", "has no `model`"),
        ("[[device]]\nmodel = 3", "3:9", "wants a text, not a number"),
        (
            "[[device]]\nmodel = 'edu'\nat = '1:2'",
            "4:6",
            "0000:01:00.0",
        ),
        (
            "[[device]]\nmodel = 'edu'\nbehind = 'rp'",
            "4:10",
            "no bridge `rp`",
        ),
        (
            "[[device]]\nmodel = 'edu'\niommu = 'x'",
            "4:9",
            "no IOMMU `x`",
        ),
        (
            "[[device]]\nmodel = 'edu'\ngroup = 70000",
            "4:9",
            "not from 0 to 65535",
        ),
        (
            "[[device]]\nmodel = 'edu'\ndriver = '../x'",
            "4:10",
            "a name is",
        ),
        (
            "[[device]]\nmodel = 'nvme'\nsize = '1 MB'",
            "4:8",
            "the units are",
        ),
        (
            "[[device]]\nmodel = 'nvme'\nsize = 1.5",
            "4:8",
            "not a fraction",
        ),
        (
            "[[device]]\nmodel = 'nvme'\nread-only = 'x'",
            "4:13",
            "true or false",
        ),
        (
            "[[device]]\nmodel = 'nvme'\nserial = \"\\u0007\"",
            "4:10",
            "control character",
        ),
        ("[[iommu]]\niova-bits = 48", "2:1", "has no `name`"),
        (
            "[[iommu]]\nname = 'i'\niova-bits = 11",
            "4:13",
            "not from 12 to 64",
        ),
        (
            "[[iommu]]\nname = 'i'\nkind = 'vdt'",
            "4:8",
            "did you mean `vtd`",
        ),
        (
            "[[iommu]]\nname = 'i'\npage-sizes = []",
            "4:14",
            "has to be a page size",
        ),
        (
            "[[iommu]]\nname = 'i'\npage-sizes = [3]",
            "4:15",
            "power of two",
        ),
        (
            "[[iommu]]\nname = 'i'\n[[iommu]]\nname = 'i'",
            "5:8",
            "two entries",
        ),
        ("[[bridge]]\nname = 'b'", "2:1", "has no `kind`"),
        (
            "[[bridge]]\nname = 'b'\nkind = 'root'",
            "4:8",
            "cannot be `root`",
        ),
        (
            "[[bridge]]\nname = ''\nkind = 'root-port'",
            "3:8",
            "a name is",
        ),
        (
            "[[bridge]]\nname = 'b'\nkind = 'pci-bridge'\nacs = true",
            "5:7",
            "no ACS",
        ),
        ("a = [", "2:6", "unclosed array"),
        ("version = 1", "2:1", "duplicate key"),
    ] {
        let shown = error(file);
        assert!(
            shown.contains(&format!("m.toml:{place}: ")),
            "{file}\n{shown}"
        );
        assert!(shown.contains(what), "{file}\n{shown}");
    }
}

#[test]
fn a_file_of_another_version_or_of_none_is_refused() {
    assert!(
        load("version = 2")
            .unwrap_err()
            .to_string()
            .contains("m.toml:1:11: ")
    );
    assert!(
        load("")
            .unwrap_err()
            .to_string()
            .contains("has no `version`")
    );
}

#[test]
fn everything_wrong_is_said_at_once_but_not_endlessly() {
    let two = load("version = 1\nx = 1\ny = 2").unwrap_err();
    assert_eq!(two.findings().len(), 2);
    let places: Vec<_> = two.findings().iter().map(|f| f.line_and_column()).collect();
    assert_eq!(places, [Some((2, 1)), Some((3, 1))]);
    let many: String = (0..100).map(|n| format!("x{n} = 1\n")).collect();
    let shown = error(&many);
    assert!(shown.ends_with("80 more"), "{shown}");
}

#[test]
fn what_is_no_text_or_too_large_is_refused() {
    let load = |bytes: &[u8]| {
        let file = Text {
            name: "m.toml",
            bytes,
        };
        Machine::load(Some(file), &[], &models())
            .unwrap_err()
            .to_string()
    };
    assert!(load(b"version = 1\n# \xff").starts_with("m.toml:2:3: this is no UTF-8"));
    let large = vec![b'\n'; iogate_machine::MAX_FILE_BYTES + 1];
    assert!(load(&large).contains("at most 1048576 bytes"));
    let many = format!("version = 1\n{}", "[[device]]\nmodel = 'edu'\n".repeat(257));
    assert!(load(many.as_bytes()).contains("at most 256 [[device]] entries"));
    let deep = format!("version = 1\na = {}", "[".repeat(100_000));
    assert!(load(deep.as_bytes()).starts_with("m.toml:2:"));
}

fn with_arguments(arguments: &[&str]) -> Result<Machine, String> {
    let arguments: Vec<String> = arguments.iter().map(|a| (*a).to_owned()).collect();
    Machine::load(None, &arguments, &models()).map_err(|error| error.to_string())
}

#[test]
fn an_argument_is_one_device_entry() {
    let machine = with_arguments(&["nvme,size=64M,serial=a,,b,group=7,at=02:00.0,driver=nvme"]);
    let machine = machine.unwrap();
    let (_, function, device) = machine.devices().next().unwrap();
    assert_eq!(function.source().to_string(), "0000:02:00.0");
    assert_eq!(function.group, 7);
    assert_eq!(function.driver, Driver::Host("nvme".into()));
    assert_eq!(device.properties.number("size"), Some(64 << 20));
    assert_eq!(device.properties.text("serial"), Some("a,b"));
    assert_eq!(device.cdev, None);
}

#[test]
fn arguments_take_the_place_of_the_default_devices_and_add_to_a_file() {
    let models_of = |machine: &Machine| -> Vec<String> {
        machine.devices().map(|(_, _, d)| d.model.clone()).collect()
    };
    assert_eq!(models_of(&with_arguments(&[]).unwrap()), ["edu", "nvme"]);
    assert_eq!(models_of(&with_arguments(&["edu"]).unwrap()), ["edu"]);
    let file = Text {
        name: "m.toml",
        bytes: b"version = 1\n[[device]]\nmodel = 'nvme'",
    };
    let both = Machine::load(Some(file), &["edu".to_owned()], &models()).unwrap();
    assert_eq!(models_of(&both), ["nvme", "edu"]);
}

#[test]
fn a_bad_argument_is_shown_with_the_place_in_it() {
    let expected = "\
--device nvme,sise=64M, character 6: unknown key `sise` in --device
   | nvme,sise=64M
   |      ^^^^ did you mean `size`?";
    assert_eq!(with_arguments(&["nvme,sise=64M"]).unwrap_err(), expected);
    for (argument, character, what) in [
        ("", 1, "no device model ``"),
        ("nvem", 1, "did you mean `nvme`?"),
        ("nvme,size", 6, "no `=` here"),
        ("nvme,", 6, "no `=` here"),
        ("nvme,size=", 11, "starts with a number"),
        ("nvme,size=1,size=1", 13, "`size` is there twice"),
        ("nvme,model=edu", 6, "`model` is there twice"),
        ("nvme,read-only=maybe", 16, "true or false, not `maybe`"),
        ("nvme,at=x", 9, "0000:01:00.0"),
    ] {
        let shown = with_arguments(&[argument]).unwrap_err();
        assert!(
            shown.contains(&format!("character {character}: ")),
            "{shown}"
        );
        assert!(shown.contains(what), "{shown}");
    }
}

/// The unit of a file that has one, with these lines.
fn vtd(says: &str) -> (iogate_machine::Iommu, iogate_machine::Vtd) {
    let machine = machine(&format!("[[iommu]]\nname = 'i'\nkind = 'vtd'\n{says}"));
    let iommu = machine.iommus()[0].clone();
    let iogate_machine::IommuKind::Vtd(vtd) = iommu.kind.clone() else {
        panic!("{iommu:?}");
    };
    (iommu, vtd)
}

#[test]
fn a_vtd_unit_has_its_own_keys_and_defaults() {
    let (iommu, unit) = vtd("");
    assert_eq!((iommu.iova_bits, iommu.page_sizes), (48, 0x4020_1000));
    assert_eq!((iommu.pasid_bits, iommu.coherent), (0, false));
    assert_eq!(
        (unit.scalable, unit.nested, unit.ats, unit.caching_mode),
        (false, None, false, true)
    );
    assert_eq!((unit.fault_records, unit.at), (8, None));
    let (iommu, unit) = vtd(
        "mode = 'scalable'\nats = true\npage-requests = true\nat = '00:04.0'\niova-bits = 57\n\
         page-sizes = ['4 KiB', '2 MiB']\nsnoop-control = true\ncaching-mode = false\nfault-records = 64",
    );
    assert_eq!((iommu.iova_bits, iommu.page_sizes), (57, 0x20_1000));
    assert_eq!((iommu.pasid_bits, iommu.coherent), (20, true));
    assert!(unit.scalable && unit.ats && unit.page_requests);
    assert_eq!((unit.fault_records, unit.caching_mode), (64, false));
    assert_eq!((unit.first_stage, unit.nested), (None, None));
    assert_eq!(unit.at.unwrap().to_string(), "0000:00:04.0");
    let (_, unit) = vtd("mode = 'scalable'\nfirst-stage = false");
    assert_eq!((unit.first_stage, unit.nested), (Some(false), None));
}

#[test]
fn what_a_vtd_unit_cannot_have_is_refused_with_its_place() {
    let refused = |says: &str| error(&format!("[[iommu]]\nname = 'i'\nkind = 'vtd'\n{says}"));
    for (says, why) in [
        ("iova-bits = 40", "39, 48 or 57"),
        ("nested = true", "mode = \"scalable\""),
        (
            "mode = 'scalable'\nfirst-stage = false\nnested = true",
            "a first stage",
        ),
        ("first-stage = true", "mode = \"scalable\""),
        ("pasid-bits = 8", "mode = \"scalable\""),
        ("ats = true\npage-requests = true", "mode = \"scalable\""),
        ("mode = 'both'", "cannot be `both`"),
        ("page-sizes = ['4 KiB', '1 GiB']", "4 KiB, then 2 MiB"),
        ("at = '01:00.0'", "bus 00"),
        ("dirty-tracking = true", "unknown key"),
        ("fault-records = 300", "1 to 222"),
    ] {
        let error = refused(says);
        assert!(
            error.contains(why) && error.contains("m.toml:"),
            "{says}: {error}"
        );
    }
}

#[test]
fn devices_ask_for_translations_where_their_unit_answers() {
    let ats = |says: &str| {
        let file = format!("[[iommu]]\nname = 'i'\nkind = 'vtd'\nats = true\n{says}");
        let machine = machine(&file);
        machine
            .devices()
            .map(|(_, _, device)| device.ats)
            .collect::<Vec<_>>()
    };
    let two = "[[device]]\nmodel = 'edu'\n[[device]]\nmodel = 'edu'\nats = false";
    assert_eq!(ats(two), [true, false]);
    assert_eq!(ats("[[device]]\nmodel = 'edu'\niommu = 'none'"), [false]);
    let refused = error("[[device]]\nmodel = 'edu'\nats = true");
    assert!(refused.contains("nobody answers"), "{refused}");
}
