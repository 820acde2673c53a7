//! The virtual VT-d against another implementation: QEMU's intel-iommu, which both answer the same guest.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime};

use super::{Case, Tier};
use crate::process::{Job, signal};
use crate::setup::Bench;
use crate::verdict::{About as _, Stop};

/// The version whose differences docs/vtd-differences.md lists.
const QEMU: &str = "11.1.";
/// Questions to each machine.
const QUESTIONS: u32 = 40_000;

/// A machine: its name, the unit's properties, the mode of its root table, and the width of addresses.
const MACHINES: [(&str, &str, &str, u32); 4] = [
    ("legacy-48", "", "legacy", 48),
    ("legacy-39", ",aw-bits=39", "legacy", 39),
    ("second-stage", ",scalable-mode=on", "scalable", 48),
    ("first-stage", ",scalable-mode=on,fsts=on", "scalable", 48),
];

pub(super) fn cases() -> Vec<Case> {
    MACHINES
        .into_iter()
        .map(|(name, properties, mode, bits)| {
            Case::new(
                Tier::Guests,
                format!("vtd-differential/{name}"),
                move |bench, log| differential(bench, log, properties, mode, bits),
            )
        })
        .collect()
}

fn differential(
    bench: &Bench,
    log: &Path,
    properties: &str,
    mode: &str,
    bits: u32,
) -> Result<(), Stop> {
    let kit = bench.newest_kit()?;
    let version = kit.version(log)?;
    if !version.starts_with(QEMU) {
        return Err(Stop::not_run(
            format!("QEMU is {version}, and what differs is known of {QEMU}x"),
            "look through docs/vtd-differences.md with this version and change the version here",
        ));
    }
    let program = bench.vtd_client()?;
    let directory = std::env::temp_dir().join(format!("iogate-vtd-{}", std::process::id()));
    std::fs::create_dir_all(&directory).about(directory.display())?;
    let socket = directory.join("qtest");
    // One of the case before.
    let _ = std::fs::remove_file(&socket);
    let mut words = kit.qemu().into_iter();
    let mut command = Command::new(words.next().unwrap_or_default());
    command.args(words);
    command.args("-machine q35 -accel tcg -S -m 512 -nodefaults -display none".split(' '));
    command.args(["-qtest-log", "none", "-qtest"]);
    command.arg(format!("unix:{},server=on,wait=off", socket.display()));
    command.args(["-audiodev", "none,id=none"]);
    for device in [
        &format!("intel-iommu,intremap=off{properties}"),
        "iommu-testdev,addr=04",
        "iommu-testdev,addr=06",
        "iommu-testdev,addr=12",
        "intel-hda,addr=05",
        "hda-output,audiodev=none",
    ] {
        command.args(["-device", device]);
    }
    let mut qemu = Job::new(command, log).limit(300).start()?;
    while !socket.exists() && qemu.is_running() {
        std::thread::sleep(Duration::from_millis(10));
    }
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    let seed = now.as_secs() % 1_000_000_000;
    let mut command = Command::new(program);
    command.arg(&socket).args([mode, &bits.to_string()]);
    command.args([seed.to_string(), QUESTIONS.to_string()]);
    let compared = Job::new(command, log).limit(240).run();
    signal(qemu.id(), libc::SIGTERM);
    // Its own end says nothing of what was compared.
    let _ = qemu.finish()?;
    // Nothing of it is needed.
    let _ = std::fs::remove_dir_all(&directory);
    let compared = compared?;
    if let Some(counts) = compared.log.lines().find(|line| line.contains("questions")) {
        bench.progress.print(&format!("  seed {seed}: {counts}"));
    }
    compared
        .success(&format!("comparing with QEMU, seed {seed}"))
        .map(drop)
}
