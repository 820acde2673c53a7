//! The ACPI table that iogate makes, read by the reference implementation: what it says of each field, and that what it
//! makes again of its own words is the same table.

use std::path::Path;
use std::process::Command;

use super::{Case, Tier};
use crate::apt::ACPICA;
use crate::process::Job;
use crate::setup::Bench;
use crate::verdict::{About as _, Stop};

pub(super) fn cases() -> Vec<Case> {
    vec![Case::new(Tier::Guests, "dmar".to_owned(), disassembled)]
}

/// What the disassembly of the example's table says, in this order and with other lines between.
const SAID: &str = "\
Table Length : 000000E2
Revision : 01
Oem ID : \"IOGATE\"
Host Address Width : 2F
Flags : 03
Subtable Type : 0000 [Hardware Unit Definition]
Flags : 00
Size (pages, log2) : 0
PCI Segment Number : 0000
Register Base Address : 00000000FED91000
Device Scope Type : 01 [PCI Endpoint Device]
PCI Bus Number : 00
PCI Path : 1C,04
PCI Path : 00,00
Device Scope Type : 02 [PCI Bridge Device]
PCI Path : 1D,00
Subtable Type : 0000 [Hardware Unit Definition]
Flags : 01
Register Base Address : 00000000FED90000
Device Scope Type : 03 [IOAPIC Device]
Enumeration ID : 02
PCI Bus Number : FF
PCI Path : 00,00
Device Scope Type : 04 [Message-capable HPET Device]
Enumeration ID : 00
PCI Path : 0F,00
Device Scope Type : 05 [Namespace Device]
Enumeration ID : 01
PCI Path : 15,02
Subtable Type : 0001 [Reserved Memory Region]
Base Address : 000000007B800000
End Address (limit) : 000000007FFFFFFF
Device Scope Type : 01 [PCI Endpoint Device]
Subtable Type : 0002 [Root Port ATS Capability]
Flags : 00
Device Scope Type : 02 [PCI Bridge Device]
PCI Path : 1C,04
Subtable Type : 0003 [Remapping Hardware Static Affinity]
Base Address : 00000000FED91000
Proximity Domain : 00000003
Subtable Type : 0004 [ACPI Namespace Device Declaration]
Device Number : 01
Device Name : \"\\_SB.I2C0\"
Subtable Type : 0005 [SoC Integrated Address Translation Cache]
Flags : 01
PCI Segment Number : 0000
Device Scope Type : 01 [PCI Endpoint Device]
PCI Path : 02,00
Raw Table Data: Length 226 (0xE2)";

/// Bytes that the compiler sets by itself: the checksum; who compiled it, and by which revision.
const ITS_OWN: [std::ops::Range<usize>; 2] = [9..10, 28..36];

fn disassembled(bench: &Bench, log: &Path) -> Result<(), Stop> {
    let iasl = ACPICA
        .provide(&bench.site.xtask, log)?
        .program("usr/bin/iasl");
    let directory = std::env::temp_dir().join(format!("iogate-dmar-{}", std::process::id()));
    // Of a run before.
    let _ = std::fs::remove_dir_all(&directory);
    std::fs::create_dir_all(&directory).about(directory.display())?;
    let mut example = bench.cargo();
    example
        .args([
            "run",
            "--quiet",
            "-p",
            "iogate-vtd",
            "--example",
            "dmar",
            "--",
        ])
        .arg(directory.join("table"));
    let made = Job::new(example, log).limit(600).run()?;
    made.success("making the table")?;
    let run = |words: &[&str]| {
        let mut command = Command::new(&iasl[0]);
        command.current_dir(&directory).args(&iasl[1..]).args(words);
        let ended = Job::new(command, log).run()?.success("iasl")?;
        let complains = |line: &&str| {
            let warned = line.contains("Warning") && !line.contains(" 0 Warnings");
            warned || line.contains("ncorrect")
        };
        match ended.log.lines().find(complains) {
            Some(line) => Err(Stop::failed(line)),
            None => Ok(()),
        }
    };
    run(&["-p", "words", "-d", "table"])?;
    let read = |name: &str| std::fs::read(directory.join(name)).about(name);
    let words = read("words.dsl")?;
    let words = String::from_utf8_lossy(&words);
    let mut lines = words.lines();
    for said in SAID.lines() {
        if !lines.any(|line| line.trim_end().ends_with(said)) {
            return Err(Stop::failed(format!(
                "iasl does not say {said:?} where it should:\n{words}"
            )));
        }
    }
    run(&["-p", "again", "words.dsl"])?;
    let (mut table, mut again) = (read("table")?, read("again.aml")?);
    for bytes in [&mut table, &mut again] {
        for own in ITS_OWN {
            bytes
                .get_mut(own)
                .into_iter()
                .flatten()
                .for_each(|byte| *byte = 0);
        }
    }
    // Nothing of it is needed.
    let _ = std::fs::remove_dir_all(&directory);
    match table == again {
        true => Ok(()),
        false => Err(Stop::failed(format!(
            "iasl makes another table of it: {again:x?} of {table:x?}"
        ))),
    }
}
