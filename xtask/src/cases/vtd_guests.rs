//! The guests tier: unmodified Linux boots behind `iogate serve`'s VT-d unit, drives an NVMe controller by its own
//! driver and assigns two devices to a program.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use super::{Case, Tier};
use crate::guest::{Forgetful, Kind, Kit};
use crate::place::{Person, Place};
use crate::process::{self, Job, Started};
use crate::setup::{Bench, Linkage};
use crate::verdict::{About as _, Stop};

/// A guest that hangs is killed after this many seconds.
const LIMIT: u64 = 200;

/// What the unit offers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Context entries lead to tables of the second stage.
    Legacy,
    /// By way of PASID tables, to tables of either stage.
    Scalable,
    /// The same, and devices cache translations.
    Ats,
}

impl Mode {
    const ALL: [Self; 3] = [Self::Legacy, Self::Scalable, Self::Ats];

    const fn name(self) -> &'static str {
        match self {
            Self::Legacy => "legacy",
            Self::Scalable => "scalable",
            Self::Ats => "ats",
        }
    }

    /// Words of the machine file's unit.
    const fn unit(self) -> &'static str {
        match self {
            Self::Legacy => "",
            Self::Scalable => "mode = \"scalable\"\n",
            Self::Ats => "mode = \"scalable\"\nats = true\n",
        }
    }

    /// Words of the kernel's command line, by which the guest knows what to look for.
    const fn words(self) -> &'static str {
        match self {
            Self::Legacy => "",
            Self::Scalable => " scalable",
            Self::Ats => " scalable ats",
        }
    }
}

/// Which kernel boots.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kernel {
    Stable,
    Newest,
}

/// One guest.
#[derive(Clone, Copy)]
struct Guest {
    mode: Mode,
    kernel: Kernel,
    person: Person,
    /// Of its memory, in MiB.
    memory: u32,
    processors: u32,
    /// More words of the kernel's command line.
    words: &'static str,
}

impl Guest {
    /// The guest of most cases.
    const fn new(mode: Mode, kernel: Kernel, person: Person) -> Self {
        Self {
            mode,
            kernel,
            person,
            memory: 512,
            processors: 1,
            words: "",
        }
    }
}

/// What a server is made to forget, and the guest that sees it: with context entries in legacy mode only, with tables
/// of the first stage in scalable mode for programs by later kernels only.
const FORGOTTEN: [(&str, Kind, Mode, Kernel); 6] = [
    ("context", Kind::Context, Mode::Legacy, Kernel::Stable),
    (
        "iotlb-domain",
        Kind::IotlbDomain,
        Mode::Legacy,
        Kernel::Stable,
    ),
    (
        "iotlb-pages",
        Kind::IotlbPages,
        Mode::Legacy,
        Kernel::Stable,
    ),
    (
        "pasid-cache",
        Kind::PasidCache,
        Mode::Scalable,
        Kernel::Stable,
    ),
    (
        "pasid-iotlb",
        Kind::PasidIotlb,
        Mode::Scalable,
        Kernel::Newest,
    ),
    ("device-tlb", Kind::DeviceTlb, Mode::Ats, Kernel::Stable),
];

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for mode in Mode::ALL {
        for (kernel, word, person) in [
            (Kernel::Stable, "stable", Person::Ordinary),
            (Kernel::Newest, "newest", Person::Root),
        ] {
            let guest = Guest::new(mode, kernel, person);
            cases.push(Case::new(
                Tier::Guests,
                format!("vtd/{}/{word}/{person}", mode.name()),
                move |bench, log| linux_boots(bench, log, guest),
            ));
        }
    }
    cases.push(Case::new(
        Tier::Guests,
        "vtd/reboot/root".to_owned(),
        |bench, log| {
            let guest = Guest {
                memory: 4096,
                processors: 2,
                words: " reboot busy",
                ..Guest::new(Mode::Ats, Kernel::Newest, Person::Root)
            };
            linux_boots(bench, log, guest)
        },
    ));
    cases.push(Case::new(
        Tier::Guests,
        "vtd/remote/ordinary".to_owned(),
        device_elsewhere,
    ));
    for (word, kind, mode, kernel) in FORGOTTEN {
        let guest = Guest {
            words: " nodisk",
            ..Guest::new(mode, kernel, Person::Root)
        };
        cases.push(Case::new(
            Tier::Guests,
            format!("vtd/forgets/{word}/root"),
            move |bench, log| forgetful(bench, log, guest, kind),
        ));
    }
    cases
}

/// What a guest starts with.
struct Boot {
    place: Rc<Place>,
    iogate: PathBuf,
    kit: Kit,
    initramfs: PathBuf,
    guest: Guest,
}

impl Boot {
    fn prepare(bench: &Bench, guest: Guest) -> Result<Self, Stop> {
        let kit = match guest.kernel {
            Kernel::Stable => bench.newest_kit()?,
            Kernel::Newest => bench.newest_kernel_kit()?,
        };
        let client = bench.c_client(Linkage::Static)?;
        let place = bench.place(guest.person)?;
        let iogate = bench.iogate_of(&place)?;
        let init = bench.site.root.join("tests/guests/vtd-init");
        let init = fs::read(&init).about(init.display())?;
        let client = fs::read(&client).about(client.display())?;
        let initramfs = place.scratch().join("initramfs-vtd");
        let archive = kit.initramfs_with(&init, &[("bin/client", &client)])?;
        fs::write(&initramfs, archive).about(initramfs.display())?;
        let kit = Kit {
            directory: place.tree(&kit.directory)?,
        };
        Ok(Self {
            place,
            iogate,
            kit,
            initramfs,
            guest,
        })
    }

    /// The kit's QEMU as one program, which finds the unit's socket where it is told.
    fn qemu(&self, unit: Option<&str>) -> Result<PathBuf, Stop> {
        let path = self.place.scratch().join("qemu-system-x86_64");
        let words = self.kit.qemu().join("' '");
        let moved = match unit {
            Some(name) => format!(
                "for word do\n  shift\n  set -- \"$@\" \"$(printf %s \"$word\" | sed 's|/{UNIT}\"|/{name}\"|')\"\ndone\n"
            ),
            None => String::new(),
        };
        fs::write(&path, format!("#!/bin/sh\n{moved}exec '{words}' \"$@\"\n"))
            .about(path.display())?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).about(path.display())?;
        Ok(path)
    }

    /// The directory of the sockets, with nothing in it.
    fn sockets(&self) -> Result<PathBuf, Stop> {
        let path = self.place.scratch().join("sockets");
        // That of the case before.
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).about(path.display())?;
        if let Some(user) = self.place.user {
            std::os::unix::fs::chown(&path, Some(user.id), Some(user.id)).about(path.display())?;
        }
        Ok(path)
    }

    /// `iogate serve` with this machine file, and this QEMU.
    fn start<'a>(
        &self,
        machine: &str,
        sockets: &Path,
        qemu: &Path,
        log: &'a Path,
    ) -> Result<Started<'a>, Stop> {
        let guest = self.guest;
        let file = self.place.scratch().join("machine.toml");
        fs::write(&file, machine).about(file.display())?;
        let mut command = self.place.command(&self.iogate);
        command.arg("serve").arg("--machine").arg(&file);
        command.arg("--dir").arg(sockets);
        command.arg("--trace").arg("vtd_fault");
        command.arg("--trace-file").arg(self.trace());
        command.arg("--").arg(qemu);
        let (memory, processors) = (guest.memory, guest.processors);
        command.args("-machine q35,accel=tcg -cpu max".split(' '));
        command.args(["-m", &memory.to_string(), "-smp", &processors.to_string()]);
        command.args("-nodefaults -display none -monitor none -serial stdio".split(' '));
        command.arg("-kernel").arg(self.kit.kernel());
        command.arg("-initrd").arg(&self.initramfs);
        if !guest.words.contains("reboot") {
            command.arg("-no-reboot");
        }
        command.arg("-append").arg(format!(
            "console=ttyS0 panic=-1 loglevel=2 intel_iommu=on iommu.strict=1 processors={processors}{}{}",
            guest.mode.words(),
            guest.words
        ));
        // A console that other output is mixed into may say nothing that can be read.
        Job::new(command, log)
            .user(self.place.user)
            .limit(LIMIT)
            .output(self.console())
            .start()
    }

    /// What the guest writes to its serial port.
    fn console(&self) -> PathBuf {
        self.place.scratch().join("console")
    }

    /// The server's trace.
    fn trace(&self) -> PathBuf {
        self.place.scratch().join("trace")
    }

    /// Waits until the guest has said whether it passed, or says nothing any more. Its words are then in the log.
    fn verdict(&self, serve: &mut Started<'_>, log: &Path) -> Result<(bool, String), Stop> {
        loop {
            let running = serve.is_running();
            let said = fs::read(self.console()).about("the guest's console")?;
            let said = String::from_utf8_lossy(&said).into_owned();
            let passed = said.contains("GUEST PASS");
            if passed || said.contains("GUEST FAIL") || said.contains("Kernel panic") || !running {
                if process::interrupted() {
                    return Err(Stop::Interrupted);
                }
                let mut log = OpenOptions::new()
                    .append(true)
                    .open(log)
                    .about(log.display())?;
                log.write_all(said.as_bytes()).about("the log")?;
                return Ok((passed, said));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The guest passes, every transfer that it saw refused is in the server's trace, and the server ends with it.
    fn passes(&self, mut serve: Started<'_>, log: &Path) -> Result<(), Stop> {
        let (passed, said) = self.verdict(&mut serve, log)?;
        if !passed {
            return Err(Stop::failed("the guest did not pass"));
        }
        if self.guest.words.contains("reboot") && !said.contains("GUEST REBOOT") {
            return Err(Stop::failed("the guest did not reboot"));
        }
        serve.finish()?.success("iogate serve")?;
        let refused = said
            .lines()
            .filter_map(|line| line.strip_prefix("refused "));
        let refused: usize = refused
            .filter_map(|count| count.trim().parse::<usize>().ok())
            .sum();
        let trace = fs::read_to_string(self.trace()).about("the trace")?;
        let traced = trace
            .lines()
            .filter(|line| line.contains("vtd_fault"))
            .count();
        if refused == 0 || refused != traced {
            return Err(Stop::failed(format!(
                "{refused} transfers were refused, and {traced} are in the trace"
            )));
        }
        Ok(())
    }
}

/// The unit's socket in the directory of the sockets; and that of another server's only device.
const UNIT: &str = "unit";
const ELSEWHERE: &str = "edu";

const EDU: &str = "[[device]]\nmodel = \"edu\"\ndma-mask = 0xffffffffffff\n";

/// The unit, two devices for a program, and a disk unless it is left out: where a translation outlives its mapping a
/// disk's driver loses its memory.
fn machine(guest: Guest, second: &str) -> String {
    let disk = match guest.words.contains("nodisk") {
        true => "",
        false => "[[device]]\nmodel = \"nvme\"\nsize = \"64 MiB\"\n",
    };
    format!(
        "version = 1\n[[iommu]]\nname = \"unit\"\nkind = \"vtd\"\n{}{disk}{EDU}{second}",
        guest.mode.unit()
    )
}

fn linux_boots(bench: &Bench, log: &Path, guest: Guest) -> Result<(), Stop> {
    let boot = Boot::prepare(bench, guest)?;
    let (sockets, qemu) = (boot.sockets()?, boot.qemu(None)?);
    let serve = boot.start(&machine(guest, EDU), &sockets, &qemu, log)?;
    boot.passes(serve, log)
}

/// The second device is in another process, which the unit's server tells of mappings: of all memory while the device is
/// the kernel's, then of what the program maps.
fn device_elsewhere(bench: &Bench, log: &Path) -> Result<(), Stop> {
    let guest = Guest {
        words: " remote iommu=pt",
        ..Guest::new(Mode::Scalable, Kernel::Stable, Person::Ordinary)
    };
    let boot = Boot::prepare(bench, guest)?;
    let (sockets, qemu) = (boot.sockets()?, boot.qemu(None)?);
    let file = boot.place.scratch().join("elsewhere.toml");
    let elsewhere = sockets.join("elsewhere");
    fs::write(&file, format!("version = 1\n{EDU}iommu = \"none\"\n")).about(file.display())?;
    let mut command = boot.place.command(&boot.iogate);
    command.arg("serve").arg("--machine").arg(&file);
    command.arg("--dir").arg(&elsewhere);
    let mut far = Job::new(command, log)
        .user(boot.place.user)
        .limit(LIMIT)
        .start()?;
    if !far.wait_for("ready") {
        return Err(Stop::failed("the second server did not get ready"));
    }
    let remote = format!(
        "[[device]]\nmodel = \"remote\"\nsocket = \"{}\"\n",
        elsewhere.join(ELSEWHERE).display()
    );
    let near = boot.start(&machine(guest, &remote), &sockets, &qemu, log)?;
    boot.passes(near, log)?;
    if !far.is_running() {
        return Err(Stop::failed("the second server ended with its client"));
    }
    process::signal(far.id(), libc::SIGTERM);
    far.finish().map(drop)
}

/// A server that forgets one kind of invalidation is found out by the guest's program.
fn forgetful(bench: &Bench, log: &Path, guest: Guest, kind: Kind) -> Result<(), Stop> {
    let boot = Boot::prepare(bench, guest)?;
    let (sockets, qemu) = (boot.sockets()?, boot.qemu(Some("forgetful"))?);
    let forgetful = Forgetful::start(&sockets.join("forgetful"), &sockets.join(UNIT), kind)?;
    let mut serve = boot.start(&machine(guest, EDU), &sockets, &qemu, log)?;
    let (passed, said) = boot.verdict(&mut serve, log)?;
    // The guest turns itself off.
    serve.finish()?.success("iogate serve")?;
    if forgetful.forgotten() == 0 {
        return Err(Stop::failed("the guest asked for nothing of this kind"));
    }
    if passed {
        return Err(Stop::failed("no check of the guest noticed it"));
    }
    match said
        .lines()
        .find_map(|line| Some(line.strip_prefix("FAILED ")?.split_once("assigned.c:")?.1))
    {
        Some(said) => {
            bench.progress.print(&format!(
                "  {} forgotten; found out by line {}",
                forgetful.forgotten(),
                said.trim_end()
            ));
            Ok(())
        }
        None => Err(Stop::failed(
            "the guest failed in another way than by the program's checks",
        )),
    }
}
