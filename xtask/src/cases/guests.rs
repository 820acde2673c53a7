//! The guests tier: Linux in QEMU drives passed-through devices.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::{Case, Tier};
use crate::guest::Kit;
use crate::place::{Person, Place};
use crate::process::{Job, Started};
use crate::setup::Bench;
use crate::verdict::{About as _, Stop};

/// A guest that hangs is killed after this many seconds.
const LIMIT: u64 = 120;

/// A guest that also reboots.
const LONG_LIMIT: u64 = 200;

/// Class codes: mass storage, non-volatile memory, NVM Express; network, Ethernet.
const NVME: &str = "0x010802";
pub(super) const ETHERNET: &str = "0x020000";

/// What executes the guest.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Accelerator {
    Tcg,
    Kvm,
}

/// Which of QEMU's back ends opens the device.
#[derive(Clone, Copy)]
pub(super) enum Backend {
    Legacy,
    Iommufd,
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for person in Person::ALL {
        for (backend, word) in [(Backend::Legacy, "legacy"), (Backend::Iommufd, "iommufd")] {
            cases.push(Case::new(
                Tier::Guests,
                format!("qemu/{word}/{person}"),
                move |bench, log| linux_drives_nvme(bench, log, person, backend),
            ));
        }
        cases.push(Case::new(
            Tier::Guests,
            format!("qemu-newest/both/{person}"),
            move |bench, log| linux_drives_both(bench, log, person, Accelerator::Tcg),
        ));
    }
    // Who may open /dev/kvm is the machine's to say: root may.
    cases.push(Case::new(
        Tier::Guests,
        "qemu-newest/kvm/root".to_owned(),
        under_kvm,
    ));
    cases
}

pub(super) fn linux_drives_nvme(
    bench: &Bench,
    log: &Path,
    person: Person,
    backend: Backend,
) -> Result<(), Stop> {
    let place = bench.place(person)?;
    let kit = bench.kit()?;
    let iogate = bench.iogate_of(&place)?;
    let init = bench.site.root.join("tests/guests/nvme-init");
    let init = fs::read(&init).about(init.display())?;
    let initramfs = place.scratch().join("initramfs");
    fs::write(&initramfs, kit.initramfs(&init)?).about(initramfs.display())?;
    let kit = Kit {
        directory: place.tree(&kit.directory)?,
    };
    let address = address(&iogate, log, &place, &[], NVME)?;
    let mut command = place.command(&iogate);
    command.args(["run", "--"]).args(kit.qemu());
    command.args("-machine q35,accel=tcg,memory-backend=ram -cpu max -m 256".split(' '));
    command.args("-object memory-backend-memfd,id=ram,size=256M,share=on".split(' '));
    command.args("-nodefaults -no-reboot -display none -monitor none -serial stdio".split(' '));
    command.arg("-kernel").arg(kit.kernel());
    command.arg("-initrd").arg(&initramfs);
    command.args(["-append", "console=ttyS0 panic=-1 loglevel=5"]);
    match backend {
        Backend::Legacy => {
            command.args(["-device", &format!("vfio-pci,host={address}")]);
        }
        Backend::Iommufd => {
            command.args(["-object", "iommufd,id=iommufd0"]);
            command.args([
                "-device",
                &format!("vfio-pci,host={address},iommufd=iommufd0"),
            ]);
        }
    }
    let ended = Job::new(command, log)
        .user(place.user)
        .limit(LIMIT)
        .run()?
        .success("QEMU")?;
    if ended.log.contains("GUEST PASS") {
        Ok(())
    } else {
        Err(Stop::failed("the guest did not pass"))
    }
}

/// The guide's example, in which firmware reads the disk under KVM; then Linux, where this machine's KVM runs it.
fn under_kvm(bench: &Bench, log: &Path) -> Result<(), Stop> {
    kvm_is_there()?;
    guide_s_example(bench, log)?;
    match linux_drives_both(bench, log, Person::Root, Accelerator::Kvm) {
        Err(Stop::NotRun { reason, .. }) => {
            bench.progress.print(&format!(
                "  NOT RUN under KVM: LINUX. {reason}. Seen is firmware only"
            ));
            Ok(())
        }
        result => result,
    }
}

/// A boot sector, 16-bit code at 0x7c00: writes what stands behind it to the first serial port, and turns the machine
/// off by the power management register that SeaBIOS puts at 0x604 on QEMU's q35.
const BOOT_CODE: [u8; 28] = [
    0x31, 0xc0, 0x8e, 0xd8, 0xbe, 0x1c, 0x7c, 0xba, 0xf8,
    0x03, // ds = 0, si = text, dx = port
    0xac, 0x84, 0xc0, 0x74, 0x03, 0xee, 0xeb, 0xf8, // each byte up to a 0
    0xba, 0x04, 0x06, 0xb8, 0x00, 0x20, 0xef, // off
    0xf4, 0xeb, 0xfd, // and nothing more
];
const BOOT_TEXT: &str = "started from the assigned disk\n";

/// Runs the command of the guide's chapter on QEMU as it stands there.
fn guide_s_example(bench: &Bench, log: &Path) -> Result<(), Stop> {
    let place = bench.place(Person::Root)?;
    let kit = bench.newest_kit()?;
    bench.iogate_of(&place)?;
    let guide = bench.site.root.join("docs/guide.md");
    let guide = fs::read_to_string(&guide).about(guide.display())?;
    let example = guide
        .split_once("## Under QEMU")
        .and_then(|(_, chapter)| chapter.split_once("```sh\n"))
        .and_then(|(_, block)| block.split_once("```"))
        .map(|(example, _)| example)
        .ok_or_else(|| Stop::failed("docs/guide.md has no example for QEMU"))?;
    let mut sector = BOOT_CODE.to_vec();
    sector.extend(BOOT_TEXT.bytes());
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    sector.resize(1 << 20, 0);
    let disk = place.scratch().join("disk.img");
    fs::write(&disk, sector).about(disk.display())?;
    let words = kit.qemu().join("' '");
    let mut command = place.command(Path::new("sh"));
    command.arg("-c").arg(format!(
        "PATH={}/bin:$PATH; qemu=$(dirname $(command -v iogate))/qemu-system-x86_64\n\
         printf '#!/bin/sh\\nexec %s \"$@\"\\n' \"'{words}'\" > $qemu && chmod 755 $qemu\n{example}",
        place.directory().display()
    ));
    let ended = Job::new(command, log)
        .limit(LIMIT)
        .run()?
        .success("the guide's example")?;
    if ended.log.contains(BOOT_TEXT.trim_end()) {
        Ok(())
    } else {
        Err(Stop::failed("the guest did not start from the disk"))
    }
}

/// A network and a disk by iommufd in a guest with two processors: used at once, unplugged, replugged, and again after
/// the guest has rebooted.
fn linux_drives_both(
    bench: &Bench,
    log: &Path,
    person: Person,
    accelerator: Accelerator,
) -> Result<(), Stop> {
    if accelerator == Accelerator::Kvm {
        kvm_is_there()?;
    }
    let place = bench.place(person)?;
    let kit = bench.newest_kit()?;
    let iogate = bench.iogate_of(&place)?;
    let init = bench.site.root.join("tests/guests/both-init");
    let init = fs::read(&init).about(init.display())?;
    let initramfs = place.scratch().join("initramfs-both");
    fs::write(&initramfs, kit.initramfs(&init)?).about(initramfs.display())?;
    let kit = Kit {
        directory: place.tree(&kit.directory)?,
    };
    let machine = ["--device=nvme,size=64M", "--device=virtio-net"];
    let disk = address(&iogate, log, &place, &machine, NVME)?;
    let network = address(&iogate, log, &place, &machine, ETHERNET)?;
    let control = place.scratch().join("qmp");
    // That of the case before.
    let _ = fs::remove_file(&control);
    let mut command = place.command(&iogate);
    command.args(["run", "--fail-on", "faults"]).args(machine);
    command.arg("--").args(kit.qemu());
    match accelerator {
        Accelerator::Tcg => {
            command.args("-machine q35,accel=tcg,memory-backend=ram -cpu max".split(' '))
        }
        Accelerator::Kvm => {
            command.args("-machine q35,accel=kvm,memory-backend=ram -cpu host".split(' '))
        }
    };
    command.args("-smp 2 -m 384".split(' '));
    command.args("-object memory-backend-memfd,id=ram,size=384M,share=on".split(' '));
    command.args("-nodefaults -display none -monitor none -serial stdio".split(' '));
    command.arg("-qmp");
    command.arg(format!("unix:{},server=on,wait=off", control.display()));
    command.arg("-kernel").arg(kit.kernel());
    command.arg("-initrd").arg(&initramfs);
    command.args(["-append", "console=ttyS0 panic=-1 loglevel=5"]);
    command.args(["-object", "iommufd,id=iommufd0"]);
    for (port, id, address) in [(1, "disk", &disk), (2, "network", &network)] {
        command.arg("-device");
        command.arg(format!(
            "pcie-root-port,id=port-{id},chassis={port},slot={port}"
        ));
        command.arg("-device").arg(format!(
            "vfio-pci,id={id},bus=port-{id},host={address},iommufd=iommufd0"
        ));
    }
    let job = Job::new(command, log).user(place.user).limit(LONG_LIMIT);
    let mut qemu = job.start()?;
    await_words(&mut qemu, "GUEST UNPLUG")?;
    let mut monitor = Monitor::connect(&control)?;
    for id in ["disk", "network"] {
        monitor.execute(&format!(
            "{{\"execute\":\"device_del\",\"arguments\":{{\"id\":\"{id}\"}}}}"
        ))?;
        monitor.event("\"DEVICE_DELETED\"", &format!("\"device\": \"{id}\""))?;
    }
    await_words(&mut qemu, "GUEST REPLUG")?;
    for (id, address) in [("disk", &disk), ("network", &network)] {
        monitor.execute(&format!(
            "{{\"execute\":\"device_add\",\"arguments\":{{\"driver\":\"vfio-pci\",\"id\":\"{id}\",\
             \"bus\":\"port-{id}\",\"host\":\"{address}\",\"iommufd\":\"iommufd0\"}}}}"
        ))?;
    }
    await_words(&mut qemu, "GUEST REBOOT")?;
    let ended = qemu.finish()?.success("QEMU")?;
    if ended.log.contains("GUEST PASS") {
        Ok(())
    } else {
        Err(Stop::failed("the guest did not pass"))
    }
}

/// Waits for what the guest says, but not longer than it runs.
pub(super) fn await_words(qemu: &mut Started<'_>, words: &str) -> Result<(), Stop> {
    // What QEMU says when the machine's KVM cannot execute the guest: it then stands still.
    let broken = "KVM internal error";
    while qemu.is_running() {
        let log = qemu.log_so_far();
        if log.contains(broken) {
            return Err(Stop::not_run(
                "This machine's KVM does not run Linux (KVM internal error)",
                "run where KVM runs a Linux guest",
            ));
        }
        if log.contains(words) || log.contains("GUEST FAIL") {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    if qemu.log_so_far().contains(words) {
        return Ok(());
    }
    Err(Stop::failed(format!("the guest does not say {words}")))
}

fn kvm_is_there() -> Result<(), Stop> {
    if Path::new("/dev/kvm").exists() {
        return Ok(());
    }
    Err(Stop::not_run(
        "this machine has no /dev/kvm",
        "run where KVM is: a machine with virtualisation enabled",
    ))
}

/// QEMU's control connection. QEMU: docs/interop/qmp-spec.
pub(super) struct Monitor {
    stream: UnixStream,
    lines: std::io::Lines<BufReader<UnixStream>>,
    /// Events that came before they were asked for.
    events: Vec<String>,
}

impl Monitor {
    pub(super) fn connect(path: &Path) -> Result<Self, Stop> {
        let stream = UnixStream::connect(path).about(path.display())?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let lines = BufReader::new(stream.try_clone()?).lines();
        let mut monitor = Self {
            stream,
            lines,
            events: Vec::new(),
        };
        monitor.line()?;
        monitor.execute("{\"execute\":\"qmp_capabilities\"}")?;
        Ok(monitor)
    }

    fn line(&mut self) -> Result<String, Stop> {
        match self.lines.next() {
            Some(line) => line.about("QEMU's control connection"),
            None => Err(Stop::failed("QEMU closed its control connection")),
        }
    }

    /// Sends a command and waits for its answer.
    pub(super) fn execute(&mut self, command: &str) -> Result<(), Stop> {
        writeln!(self.stream, "{command}").about("QEMU's control connection")?;
        loop {
            let line = self.line()?;
            if line.contains("\"event\"") {
                self.events.push(line);
            } else if line.contains("\"error\"") {
                return Err(Stop::failed(format!("{command}: {line}")));
            } else {
                return Ok(());
            }
        }
    }

    /// Waits for an event with both words.
    pub(super) fn event(&mut self, name: &str, about: &str) -> Result<(), Stop> {
        let wanted = |line: &String| line.contains(name) && line.contains(about);
        while !self.events.iter().any(wanted) {
            let line = self.line()?;
            self.events.push(line);
        }
        Ok(())
    }
}

/// Where the machine has its device of a class, found as a program would.
pub(super) fn address(
    iogate: &Path,
    log: &Path,
    place: &Place,
    machine: &[&str],
    class: &str,
) -> Result<String, Stop> {
    let mut command: Command = place.command(iogate);
    command.arg("run").args(machine).args(["--", "sh", "-c"]);
    command.arg(format!(
        "cd /sys/bus/pci/devices && for device in *; do \
         grep -q {class} $device/class && echo $device; done; exit 0"
    ));
    let ended = Job::new(command, log)
        .user(place.user)
        .limit(60)
        .output(place.scratch().join("address.out"))
        .run()?
        .success("looking for the device")?;
    match ended.output.lines().next() {
        Some(address) => Ok(address.to_owned()),
        None => Err(Stop::failed(format!("no PCI device has the class {class}"))),
    }
}
