//! The virtual VT-d's interrupt remapping against QEMU's: devices send messages by random tables, and QEMU's trace and
//! fault records say what becomes of them.

use std::path::Path;

use super::{Case, Tier, vtd};
use crate::setup::Bench;
use crate::verdict::Stop;

/// Messages in each mode.
const MESSAGES: u32 = 20_000;

/// Functions that send: several of one device, one behind a bridge, and one whose messages have data of 32 bits.
const DEVICES: [&str; 8] = [
    "edu,addr=04",
    "edu,addr=06.0,multifunction=on",
    "edu,addr=06.3",
    "edu,addr=06.5",
    "edu,addr=06.7",
    "e1000e,addr=05,romfile=",
    "pcie-root-port,id=bridge,chassis=1,addr=08",
    "edu,bus=bridge",
];

pub(super) fn cases() -> Vec<Case> {
    [("xapic", "off"), ("x2apic", "on")]
        .into_iter()
        .map(|(mode, extended)| {
            Case::new(
                Tier::Guests,
                format!("vtd-interrupts/{mode}"),
                move |bench, log| differential(bench, log, mode, extended),
            )
        })
        .collect()
}

fn differential(bench: &Bench, log: &Path, mode: &str, extended: &str) -> Result<(), Stop> {
    let unit = format!("intel-iommu,intremap=on,eim={extended}");
    let mut arguments = vec![
        "-trace",
        "vtd_ir_remap_msi",
        "-D",
        "trace",
        "-device",
        &unit,
    ];
    for device in DEVICES {
        arguments.extend(["-device", device]);
    }
    let words = ["trace".as_ref(), mode.as_ref()];
    let program = "iogate-client-vtd-interrupts";
    vtd::compare(bench, log, &arguments, program, &words, MESSAGES)
}
