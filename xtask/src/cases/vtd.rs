//! The virtual VT-d against another implementation: QEMU's intel-iommu, which both answer the same guest.

use std::ffi::OsStr;
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
    let unit = format!("intel-iommu,intremap=off{properties}");
    let mut arguments = vec!["-audiodev", "none,id=none"];
    for device in [
        &unit,
        "iommu-testdev,addr=04",
        "iommu-testdev,addr=06",
        "iommu-testdev,addr=12",
        "intel-hda,addr=05",
        "hda-output,audiodev=none",
    ] {
        arguments.extend(["-device", device]);
    }
    let bits = bits.to_string();
    let words = [mode.as_ref(), bits.as_ref()];
    compare(
        bench,
        log,
        &arguments,
        "iogate-client-vtd-qtest",
        &words,
        QUESTIONS,
    )
}

/// Starts QEMU with these arguments, in a directory of its own, and has a program compare it: by a socket of qtest, these
/// words, a seed and a number of questions.
pub(super) fn compare(
    bench: &Bench,
    log: &Path,
    arguments: &[&str],
    program: &str,
    words: &[&OsStr],
    questions: u32,
) -> Result<(), Stop> {
    let kit = bench.newest_kit()?;
    let version = kit.version(log)?;
    if !version.starts_with(QEMU) {
        return Err(Stop::not_run(
            format!("QEMU is {version}, and what differs is known of {QEMU}x"),
            "look through docs/vtd-differences.md with this version and change the version here",
        ));
    }
    let program = bench.vtd_client()?.with_file_name(program);
    let directory = std::env::temp_dir().join(format!("iogate-vtd-{}", std::process::id()));
    // Of the case before.
    let _ = std::fs::remove_dir_all(&directory);
    std::fs::create_dir_all(&directory).about(directory.display())?;
    let mut qemu = kit.qemu().into_iter();
    let mut command = Command::new(qemu.next().unwrap_or_default());
    command.current_dir(&directory).args(qemu);
    command.args("-machine q35 -accel tcg -S -m 512 -nodefaults -display none".split(' '));
    command.args("-qtest-log none -qtest unix:qtest,server=on,wait=off".split(' '));
    command.args(arguments);
    let mut qemu = Job::new(command, log).limit(300).start()?;
    while !directory.join("qtest").exists() && qemu.is_running() {
        std::thread::sleep(Duration::from_millis(10));
    }
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    let seed = now.as_secs() % 1_000_000_000;
    let mut command = Command::new(program);
    command.current_dir(&directory).arg("qtest").args(words);
    command.args([seed.to_string(), questions.to_string()]);
    let compared = Job::new(command, log).limit(240).run();
    signal(qemu.id(), libc::SIGTERM);
    // Its own end says nothing of what was compared.
    let _ = qemu.finish()?;
    // Nothing of it is needed.
    let _ = std::fs::remove_dir_all(&directory);
    let compared = compared?;
    if let Some(counts) = compared
        .log
        .lines()
        .find(|line| line.contains("unknown differences"))
    {
        bench.progress.print(&format!("  seed {seed}: {counts}"));
    }
    compared
        .success(&format!("comparing with QEMU, seed {seed}"))
        .map(drop)
}
