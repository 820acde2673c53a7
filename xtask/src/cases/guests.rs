//! The guests tier: Linux in QEMU drives the passed-through NVMe controller.

use std::fs;
use std::path::Path;

use super::{Case, Tier};
use crate::place::{Person, Place};
use crate::process::Job;
use crate::setup::Bench;
use crate::verdict::{About as _, Stop};

/// A guest that hangs is killed after this many seconds.
const LIMIT: u64 = 120;

/// Which of QEMU's back ends opens the device.
#[derive(Clone, Copy)]
enum Backend {
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
    }
    cases
}

fn linux_drives_nvme(
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
    let kit = crate::guest::Kit {
        directory: place.tree(&kit.directory)?,
    };
    let address = nvme_address(&iogate, log, &place)?;
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

/// Where the machine has its NVMe controller, found as a program would: by its class.
fn nvme_address(iogate: &Path, log: &Path, place: &Place) -> Result<String, Stop> {
    let mut command = place.command(iogate);
    command.args(["run", "--", "sh", "-c"]);
    command.arg(
        "cd /sys/bus/pci/devices && for device in *; do \
         grep -q 0x010802 $device/class && echo $device; done; exit 0",
    );
    let ended = Job::new(command, log)
        .user(place.user)
        .limit(60)
        .output(place.scratch().join("address.out"))
        .run()?
        .success("looking for the NVMe controller")?;
    match ended.output.lines().next() {
        Some(address) => Ok(address.to_owned()),
        None => Err(Stop::failed(
            "no PCI device has the class of an NVMe controller",
        )),
    }
}
