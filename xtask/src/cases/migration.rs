//! Guests that move: Linux is saved by one QEMU in the middle of its packets, and goes on in another.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::guests::{Backend, ETHERNET, Monitor, address, await_words};
use super::{Case, Tier};
use crate::guest::Kit;
use crate::place::{Person, Place};
use crate::process::Job;
use crate::setup::Bench;
use crate::verdict::{About as _, Stop};

/// A guest that hangs is killed after this many seconds.
const LIMIT: u64 = 200;

/// After how many rounds of packets the guest is saved, and how many there are.
const SAVED_AFTER: u32 = 5;
const ROUNDS: u32 = 30;

/// The device, in both sessions.
const MACHINE: [&str; 1] = ["--device=virtio-net"];

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for person in Person::ALL {
        for (backend, word) in [(Backend::Legacy, "legacy"), (Backend::Iommufd, "iommufd")] {
            cases.push(Case::new(
                Tier::Guests,
                format!("qemu/migration/{word}/{person}"),
                move |bench, log| linux_moves(bench, log, person, backend),
            ));
        }
    }
    cases
}

fn linux_moves(bench: &Bench, log: &Path, person: Person, backend: Backend) -> Result<(), Stop> {
    let place = bench.place(person)?;
    let kit = bench.kit()?;
    let iogate = bench.iogate_of(&place)?;
    let init = bench.site.root.join("tests/guests/migration-init");
    let init = fs::read(&init).about(init.display())?;
    let initramfs = place.scratch().join("initramfs-migration");
    fs::write(&initramfs, kit.initramfs(&init)?).about(initramfs.display())?;
    let kit = Kit {
        directory: place.tree(&kit.directory)?,
    };
    let address = address(&iogate, log, &place, &MACHINE, ETHERNET)?;
    let qemu = |step: &str| qemu(&place, &kit, &iogate, &address, backend, step);
    let state = place.scratch().join("state");

    let job = Job::new(qemu("saving"), log).user(place.user).limit(LIMIT);
    let mut source = job.start()?;
    await_words(&mut source, &format!("GUEST ROUND {SAVED_AFTER}"))?;
    let mut monitor = Monitor::connect(&control(&place, "saving"))?;
    monitor.execute(
        "{\"execute\":\"migrate-set-capabilities\",\"arguments\":{\"capabilities\":\
         [{\"capability\":\"events\",\"state\":true}]}}",
    )?;
    monitor.execute(
        "{\"execute\":\"migrate-set-parameters\",\"arguments\":\
         {\"max-bandwidth\":8589934592,\"downtime-limit\":1000}}",
    )?;
    monitor.execute(&format!(
        "{{\"execute\":\"migrate\",\"arguments\":{{\"uri\":\"file:{}\"}}}}",
        state.display()
    ))?;
    monitor.event("\"MIGRATION\"", "\"status\": \"completed\"")?;
    monitor.execute("{\"execute\":\"quit\"}")?;
    let saved = source.finish()?.success("QEMU, saving")?.log;

    let mut command = qemu("loading");
    command.args(["-incoming", &format!("file:{}", state.display())]);
    let job = Job::new(command, log).user(place.user).limit(LIMIT);
    let loaded = job.run()?.success("QEMU, loading")?.log;
    // It is large.
    fs::remove_file(&state).about(state.display())?;

    let last = rounds(&saved).last();
    let first = rounds(&loaded).next();
    if first != last.map(|round| round + 1) {
        return Err(Stop::failed(format!(
            "the guest was saved after round {last:?} and goes on with {first:?}"
        )));
    }
    if !loaded.contains("GUEST PASS") {
        return Err(Stop::failed("the guest did not pass"));
    }
    let calls = |step| {
        let trace = trace(&place, step);
        fs::read_to_string(&trace).about(trace.display())
    };
    let (saving, loading) = (calls("saving")?, calls("loading")?);
    // The numbers of DMA_LOGGING_START, to be set, and DMA_LOGGING_REPORT, to be got.
    for (calls, wanted) in [
        (&saving, "to=PreCopy "),
        (&saving, "flags=0x20006"),
        (&saving, "flags=0x10008"),
        (&saving, "to=StopCopy"),
        (&saving, "migration_read"),
        (&loading, "to=Resuming"),
        (&loading, "migration_write"),
    ] {
        if !calls.contains(wanted) {
            return Err(Stop::failed(format!("QEMU made no call with {wanted}")));
        }
    }
    Ok(())
}

/// The numbers of the rounds that a guest says it has done.
fn rounds(log: &str) -> impl Iterator<Item = u32> {
    log.lines()
        .filter_map(|line| line.trim().strip_prefix("GUEST ROUND ")?.parse().ok())
}

fn control(place: &Place, step: &str) -> std::path::PathBuf {
    place.scratch().join(format!("qmp-{step}"))
}

fn trace(place: &Place, step: &str) -> std::path::PathBuf {
    place.scratch().join(format!("trace-{step}"))
}

fn qemu(
    place: &Place,
    kit: &Kit,
    iogate: &Path,
    address: &str,
    backend: Backend,
    step: &str,
) -> Command {
    let control = control(place, step);
    // That of the case before.
    let _ = fs::remove_file(&control);
    let initramfs = place.scratch().join("initramfs-migration");
    let mut command = place.command(iogate);
    command.args(["run", "--fail-on", "faults"]).args(MACHINE);
    command.args(["--trace", "migration_*", "--trace", "ioctl_device_feature"]);
    command.arg("--trace-file").arg(trace(place, step));
    command.arg("--").args(kit.qemu());
    command.args("-machine q35,accel=tcg,memory-backend=ram -cpu max -m 256".split(' '));
    command.args("-object memory-backend-memfd,id=ram,size=256M,share=on".split(' '));
    command.args("-nodefaults -no-reboot -display none -monitor none -serial stdio".split(' '));
    command.arg("-qmp");
    command.arg(format!("unix:{},server=on,wait=off", control.display()));
    command.arg("-kernel").arg(kit.kernel());
    command.arg("-initrd").arg(initramfs);
    command.arg("-append");
    command.arg(format!("console=ttyS0 panic=-1 loglevel=5 rounds={ROUNDS}"));
    let mut device = format!("vfio-pci,host={address},enable-migration=on");
    if let Backend::Iommufd = backend {
        command.args(["-object", "iommufd,id=iommufd0"]);
        device += ",iommufd=iommufd0";
    }
    command.args(["-device", &device]);
    command
}
