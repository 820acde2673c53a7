//! What the table says, byte by byte.

use std::sync::Arc;

use iogate_dma::{Memory, MemoryError, RequesterId, Width};

use super::*;

/// A table with which Linux 6.12 and 7.2 found their unit.
const KNOWN_GOOD: &str = "
    444d 4152 5000 0000 017e 5350 494b 4520  5646 5549 4f4d 4d55 0100 0000 5350 4b20
    0100 0000 2f00 0000 0000 0000 0000 0000  0000 2000 0000 0000 00c0 bffe 0000 0000
    0108 0000 0000 0500 0108 0000 0000 0600";

fn bytes(hexadecimal: &str) -> Vec<u8> {
    let digits: Vec<u8> = hexadecimal
        .bytes()
        .filter(u8::is_ascii_hexdigit)
        .map(|digit| u8::from_str_radix(std::str::from_utf8(&[digit]).unwrap(), 16).unwrap())
        .collect();
    digits
        .chunks(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect()
}

fn function(device: u8) -> RequesterId {
    RequesterId::new(0, device, 0).unwrap()
}

/// The structures behind the header.
fn body(table: &Dmar) -> Vec<u8> {
    table.to_bytes().unwrap()[48..].to_vec()
}

struct Nothing;

impl Memory for Nothing {
    fn read(&self, address: u64, _: &mut [u8]) -> Result<(), MemoryError> {
        Err(MemoryError::Absent { address })
    }
    fn write(&self, address: u64, _: &[u8]) -> Result<(), MemoryError> {
        Err(MemoryError::Absent { address })
    }
    fn load(&self, address: u64, _: Width) -> Result<u64, MemoryError> {
        Err(MemoryError::Absent { address })
    }
    fn store(&self, address: u64, _: Width, _: u64) -> Result<(), MemoryError> {
        Err(MemoryError::Absent { address })
    }
    fn compare_exchange(&self, address: u64, _: Width, _: u64, _: u64) -> Result<u64, MemoryError> {
        Err(MemoryError::Absent { address })
    }
}

#[test]
fn the_table_of_a_unit_is_the_one_that_linux_is_known_to_accept() {
    let unit = crate::Vtd::builder(Arc::new(Nothing))
        .scope([function(5), function(6)])
        .build()
        .unwrap();
    let table = Dmar::new(48)
        .identity(Identity {
            oem: *b"SPIKE ",
            table: *b"VFUIOMMU",
            revision: 1,
            creator: *b"SPK ",
            creator_revision: 1,
        })
        .unit(unit.drhd(0xfebf_c000));
    assert_eq!(table.to_bytes().unwrap(), bytes(KNOWN_GOOD));
}

#[test]
fn a_unit_without_a_scope_takes_all() {
    let unit = crate::Vtd::builder(Arc::new(Nothing)).build().unwrap();
    assert_eq!(
        body(&Dmar::new(39).unit(unit.drhd(0xfed9_0000))),
        bytes("0000 1000 0100 0000 0000 d9fe 0000 0000")
    );
}

#[test]
fn flags_width_and_checksum_stand_where_section_8_1_has_them() {
    let plain = Dmar::new(64).to_bytes().unwrap();
    assert_eq!(
        (plain.len(), plain[4], plain[36], plain[37]),
        (48, 48, 63, 0)
    );
    let flags = |table: Dmar| {
        let bytes = table.to_bytes().unwrap();
        let sum = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!(sum, 0);
        bytes[37]
    };
    assert_eq!(flags(Dmar::new(48).interrupt_remapping()), 1);
    assert_eq!(flags(Dmar::new(48).x2apic_opt_out()), 2);
    assert_eq!(flags(Dmar::new(48).dma_control_opt_in()), 4);
    for width in [0, 65, 255] {
        assert_eq!(Dmar::new(width).to_bytes(), Err(TableError::Width(width)));
    }
}

#[test]
fn each_kind_of_scope_has_its_type_number_and_path() {
    let unit = Drhd::new(0x1000)
        .segment(0x1234)
        .scope(Scope::bridge(Path::new(0x80, 2, 1)))
        .scope(Scope::endpoint(
            Path::new(0, 0x1c, 4).through(1, 0).through(31, 7),
        ))
        .scope(Scope::io_apic(2, Path::new(0xff, 0, 0)))
        .scope(Scope::hpet(3, Path::new(0, 15, 0)))
        .scope(Scope::namespace(4, Path::new(0, 21, 2)));
    assert_eq!(
        body(&Dmar::new(48).unit(unit)),
        bytes(
            "0000 3c00 0000 3412 0010 0000 0000 0000
             0208 0000 0080 0201
             010c 0000 0000 1c04 0100 1f07
             0308 0000 02ff 0000
             0408 0000 0300 0f00
             0508 0000 0400 1502"
        )
    );
}

#[test]
fn each_structure_is_laid_out_as_its_section_says() {
    let scope = || Scope::endpoint(function(5));
    let one = |table: Dmar| body(&table);
    assert_eq!(
        one(Dmar::new(48).reserved(Rmrr::new(0xe000, 0x1_1fff).segment(1).scope(scope()))),
        bytes(
            "0100 2000 0000 0100 00e0 0000 0000 0000 ff1f 0100 0000 0000
             0108 0000 0000 0500"
        )
    );
    assert_eq!(
        one(Dmar::new(48).root_ports(Atsr::new(2).scope(Scope::bridge(function(5))))),
        bytes("0200 1000 0000 0200 0208 0000 0000 0500")
    );
    assert_eq!(
        one(Dmar::new(48).root_ports(Atsr::new(0).scope(scope()).all_ports())),
        bytes("0200 0800 0100 0000")
    );
    let affinity = Rhsa {
        base: 0xfed9_0000,
        domain: 0x0102_0304,
    };
    assert_eq!(
        one(Dmar::new(48).affinity(affinity)),
        bytes("0300 1400 0000 0000 0000 d9fe 0000 0000 0403 0201")
    );
    let device = Andd {
        number: 7,
        name: "\\_SB.I2C0".to_owned(),
    };
    assert_eq!(
        one(Dmar::new(48).device(device)),
        bytes("0400 1200 0000 0007 5c5f 5342 2e49 3243 3000")
    );
    assert_eq!(
        one(Dmar::new(48).integrated(Satc::new(3).required().scope(scope()))),
        bytes("0500 1000 0100 0300 0108 0000 0000 0500")
    );
}

#[test]
fn structures_stand_by_type_and_the_unit_that_takes_all_is_the_last_unit() {
    let table = Dmar::new(48)
        .integrated(Satc::new(0).scope(Scope::endpoint(function(1))))
        .root_ports(Atsr::new(0).all_ports())
        .unit(Drhd::new(0x1000).include_all())
        .reserved(Rmrr::new(0, 0xfff).scope(Scope::endpoint(function(1))))
        .unit(Drhd::new(0x2000).scope(Scope::endpoint(function(1))));
    let body = body(&table);
    let mut found = Vec::new();
    let mut rest = &body[..];
    while !rest.is_empty() {
        found.push((rest[0], rest[4]));
        rest = &rest[usize::from(rest[2])..];
    }
    assert_eq!(found, [(0, 0), (0, 1), (1, 0), (2, 1), (5, 0)]);
}

#[test]
fn what_section_8_forbids_is_an_error() {
    let error = |table: Dmar| table.to_bytes().unwrap_err();
    let two = Dmar::new(48)
        .unit(Drhd::new(0x1000).segment(7).include_all())
        .unit(Drhd::new(0x2000).segment(7).include_all());
    assert_eq!(error(two), TableError::TwoCatchAlls(7));
    assert_eq!(
        error(Dmar::new(48).unit(Drhd::new(0x1001))),
        TableError::Registers { base: 0x1001 }
    );
    for (first, last) in [(0x1000, 0xfff), (0, 0x1000), (1, 0xfff), (0x2000, 0xfff)] {
        assert_eq!(
            error(Dmar::new(48).reserved(Rmrr::new(first, last))),
            TableError::Region { first, last }
        );
    }
    for path in [
        Path::new(0, 32, 0),
        Path::new(0, 0, 8),
        Path::new(0, 1, 0).through(0, 255),
    ] {
        let table = Dmar::new(48).unit(Drhd::new(0).scope(Scope::endpoint(path)));
        assert!(matches!(error(table), TableError::Path(..)));
    }
    for name in ["", "\\_SB.É", "A\0B"] {
        let device = Andd {
            number: 1,
            name: name.to_owned(),
        };
        assert_eq!(
            error(Dmar::new(48).device(device)),
            TableError::Name(name.to_owned())
        );
    }
    let long = (0..200).fold(Path::new(0, 0, 0), |path, _| path.through(0, 0));
    assert_eq!(
        error(Dmar::new(48).unit(Drhd::new(0).scope(Scope::endpoint(long)))),
        TableError::TooLong
    );
    let many = (0..10_000).fold(Drhd::new(0), |unit, _| {
        unit.scope(Scope::endpoint(function(1)))
    });
    assert_eq!(error(Dmar::new(48).unit(many)), TableError::TooLong);
}
