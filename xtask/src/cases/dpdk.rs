//! DPDK's own programs, unmodified from the distribution's packages, on devices whose registers they map.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Case, Tier};
use crate::apt::{DPDK, Tree};
use crate::huge_pages::HugePages;
use crate::place::{Person, Place};
use crate::process::Job;
use crate::setup::Bench;
use crate::verdict::{About as _, Stop};

/// Packets that testpmd forwards at least.
const PACKETS: u64 = 200_000;
/// Packets that are under way: one burst of testpmd.
const BURST: u64 = 32;
/// testpmd's own options: what comes in goes out again.
const TESTPMD: &str = "-- --forward-mode=io --no-flush-rx --tx-first --stats-period=1 \
                       --nb-cores=1 --total-num-mbufs=4096 --no-lsc-interrupt";
const HUGE_PAGE: u64 = 2 << 20;

/// The drivers that are loaded.
const DRIVERS: [&str; 6] = [
    "bus_pci",
    "bus_vdev",
    "mempool_ring",
    "net_virtio",
    "net_vhost",
    "dma_ioat",
];

/// Without huge pages DPDK maps each page of its memory by itself.
const NETWORK: &str = "\
version = 1
dma_entry_limit = 100000

[[device]]
model = \"virtio-net\"
mmio = \"map\"
";

const DMA_ENGINE: &str = "\
version = 1
dma_entry_limit = 100000

[[device]]
model = \"ioat\"
mmio = \"map\"
";

/// What DPDK's memory is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pages {
    Small,
    Huge,
}

impl Pages {
    fn option(self) -> &'static str {
        match self {
            Self::Small => "--no-huge",
            Self::Huge => "--in-memory",
        }
    }

    /// DPDK's memory, in bytes: huge pages are hard to find on a machine that has run for long.
    fn memory(self) -> u64 {
        match self {
            Self::Small => 128 << 20,
            Self::Huge => 64 << 20,
        }
    }

    fn size(self) -> u64 {
        match self {
            Self::Small => 4096,
            Self::Huge => HUGE_PAGE,
        }
    }
}

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for person in Person::ALL {
        for (pages, word) in [(Pages::Small, "no-huge"), (Pages::Huge, "huge")] {
            cases.push(Case::new(
                Tier::Guests,
                format!("dpdk/testpmd/{word}/{person}"),
                move |bench, log| testpmd(bench, log, person, pages),
            ));
        }
        cases.push(Case::new(
            Tier::Guests,
            format!("dpdk/ioat/{person}"),
            move |bench, log| dmadev(bench, log, person),
        ));
    }
    cases.push(Case::new(Tier::Guests, "dpdk/ratio/root".to_owned(), ratio));
    cases
}

/// testpmd forwards what virtio-net's loopback gives back, and counts it.
fn testpmd(bench: &Bench, log: &Path, person: Person, pages: Pages) -> Result<(), Stop> {
    let session = Session::new(bench, person)?;
    let _kept = match pages {
        Pages::Small => None,
        Pages::Huge => Some(HugePages::provide(pages.memory() / HUGE_PAGE + 2)?),
    };
    let machine = session.machine(NETWORK)?;
    let mut command = session.run(&machine);
    session.testpmd(&mut command, pages, &[]);
    let job = Job::new(command, log).user(session.place.user).limit(120);
    let mut job = job.terminal().start()?;
    while job.is_running() && number(&job.log_so_far(), "RX-packets:") < PACKETS {
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    job.press_interrupt()?;
    let ended = job.finish()?.success("dpdk-testpmd")?;
    let text = ended.log.rsplit("Accumulated").next().unwrap_or_default();
    let (received, sent) = (number(text, "RX-total:"), number(text, "TX-total:"));
    let lost = ["RX-dropped:", "TX-dropped:"].map(|word| number(text, word));
    if received < PACKETS || received > sent || sent - received > BURST || lost != [0, 0] {
        return Err(Stop::failed(format!(
            "of {sent} packets {received} came back, {lost:?} were dropped"
        )));
    }
    // testpmd leaves its memory's mappings to the kernel, and no other ones.
    let left = pages.memory() / pages.size();
    let left = format!("{left} mappings were never unmapped");
    if !ended.log.contains(&left) {
        return Err(Stop::failed(format!("it is not so that {left}")));
    }
    bench.progress.print(&format!("  {received} packets"));
    Ok(())
}

/// DPDK's own test of DMA engines: copies, fills, stop and start, a full ring.
fn dmadev(bench: &Bench, log: &Path, person: Person) -> Result<(), Stop> {
    let session = Session::new(bench, person)?;
    let machine = session.machine(DMA_ENGINE)?;
    let mut command = session.run(&machine);
    session.program(&mut command, "dpdk-test", Pages::Small, first_processor());
    command.env("DPDK_TEST", "dmadev_autotest");
    let ended = Job::new(command, log)
        .user(session.place.user)
        .limit(120)
        .run()?
        .success("dpdk-test")?;
    let ours = ended.log.split("Test dmadev instance 0 [0000:").nth(1);
    let passed = |name: &str| ours.is_some_and(|text| text.contains(&format!("{name} succeeded")));
    match ["copy", "stop_start", "burst_capacity", "fill"]
        .into_iter()
        .find(|name| !passed(name))
    {
        None if ended.log.contains("Test OK") => Ok(()),
        None => Err(Stop::failed("dpdk-test does not say that it is well")),
        Some(name) => Err(Stop::failed(format!("no success of {name} on the ioat"))),
    }
}

/// Packets a second on virtio-net, and against DPDK's own virtual device: the same driver on `virtio_user`, whose
/// packets DPDK's vhost library gives back from another processor. Both devices copy each packet twice. (`net_null` and
/// `net_ring` copy nothing, and have no queues in memory.)
fn ratio(bench: &Bench, log: &Path) -> Result<(), Stop> {
    let session = Session::new(bench, Person::Root)?;
    let machine = session.machine(NETWORK)?;
    let processors = crate::process::processors();
    for burst in [32, 128] {
        let option = format!("--burst={burst}");
        let mut command = session.run(&machine);
        session.testpmd(&mut command, Pages::Small, &[&option]);
        let mut pinned = session.place.command(Path::new("taskset"));
        pinned.args(["-c", &processors[0].to_string()]);
        pinned.arg(command.get_program()).args(command.get_args());
        let one = best_second(pinned, log)?;
        bench.progress.print(&format!(
            "  one processor, bursts of {burst}: {:.2} Mpps",
            one as f64 / 1e6
        ));
        if processors.len() < 2 {
            return Err(Stop::not_run(
                "there is no processor for vhost",
                "run on a machine with two",
            ));
        }
        let ours = best_second(command, log)?;
        let native = best_second(session.native(&option, &processors), log)?;
        bench.progress.print(&format!(
            "  two processors, bursts of {burst}: {:.2} Mpps, virtio_user {:.2} Mpps, ratio {:.2}",
            ours as f64 / 1e6,
            native as f64 / 1e6,
            ours as f64 / native as f64
        ));
    }
    Ok(())
}

/// Runs testpmd for some seconds: the packets received in the best of them.
fn best_second(command: Command, log: &Path) -> Result<u64, Stop> {
    let mut job = Job::new(command, log).limit(120).terminal().start()?;
    while job.is_running() && job.log_so_far().matches("Rx-pps:").count() < 3 {
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    job.press_interrupt()?;
    let ended = job.finish()?.success("dpdk-testpmd")?;
    match number(&ended.log, "Rx-pps:") {
        0 => Err(Stop::failed("no packet was received")),
        packets => Ok(packets),
    }
}

/// The largest number that stands behind a word.
fn number(text: &str, word: &str) -> u64 {
    text.split(word)
        .skip(1)
        .filter_map(|rest| rest.split_whitespace().next()?.parse().ok())
        .max()
        .unwrap_or(0)
}

fn first_processor() -> usize {
    crate::process::processors().first().copied().unwrap_or(0)
}

/// DPDK and iogate in a person's place.
struct Session {
    place: std::rc::Rc<Place>,
    iogate: PathBuf,
    dpdk: Tree,
}

impl Session {
    fn new(bench: &Bench, person: Person) -> Result<Self, Stop> {
        let place = bench.place(person)?;
        Ok(Self {
            iogate: bench.iogate_of(&place)?,
            dpdk: bench.packages(&DPDK, &place)?,
            place,
        })
    }

    fn machine(&self, text: &str) -> Result<PathBuf, Stop> {
        let path = self.place.scratch().join("machine.toml");
        fs::write(&path, text).about(path.display())?;
        Ok(path)
    }

    /// `iogate run` of this machine, in which a fault is a failure.
    fn run(&self, machine: &Path) -> Command {
        let mut command = self.place.command(&self.iogate);
        command.args(["run", "--fail-on", "faults", "--machine"]);
        command.arg(machine).arg("--");
        command
    }

    /// One of DPDK's programs with its options.
    fn program(&self, command: &mut Command, name: &str, pages: Pages, processor: usize) {
        command.args(self.dpdk.program(&format!("usr/bin/{name}")));
        // By name: a whole directory is refused where everybody may write to one above it.
        for driver in DRIVERS {
            command.args(["-d", &format!("librte_{driver}.so.25")]);
        }
        command.args([pages.option(), "-m", &(pages.memory() >> 20).to_string()]);
        command.args("--iova-mode=va --no-telemetry --no-shconf".split(' '));
        command.arg(format!("--lcores=(0,1)@{processor}"));
    }

    fn testpmd(&self, command: &mut Command, pages: Pages, more: &[&str]) {
        self.program(command, "dpdk-testpmd", pages, first_processor());
        command.args(TESTPMD.split_whitespace()).args(more);
    }

    /// testpmd on DPDK's own virtual device, and the device in a testpmd of its own.
    fn native(&self, burst: &str, processors: &[usize]) -> Command {
        let socket = self.place.scratch().join("vhost");
        let testpmd = |device: &str, processor: usize, options: &str| {
            let mut command = Command::new("exec");
            self.program(&mut command, "dpdk-testpmd", Pages::Small, processor);
            command.arg(format!("--vdev={device}={}", socket.display()));
            command.arg("--no-pci").args(options.split_whitespace());
            command.arg(burst);
            let words = command.get_args().map(std::ffi::OsStr::to_string_lossy);
            words.map(|word| format!("'{word}' ")).collect::<String>()
        };
        let answers = TESTPMD.replace("--tx-first", "");
        let device = testpmd("net_vhost0,queues=1,iface", processors[1], &answers);
        let driver = testpmd("net_virtio_user0,queues=1,path", processors[0], TESTPMD);
        let mut shell = self.place.command(Path::new("sh"));
        // The keys reach all three; the device's figures are the driver's.
        shell.arg("-c").arg(format!(
            "trap : INT; rm -f {0}; {device} > /dev/null & \
             for i in $(seq 100); do [ -S {0} ] && break; sleep 0.1; done; {driver}; kill -INT $!; wait",
            socket.display()
        ));
        shell
    }
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn the_largest_of_a_words_numbers_is_read() {
        let text = "RX-packets: 5  x\nRX-packets: 17\tRX-packets: none";
        assert_eq!(number(text, "RX-packets:"), 17);
        assert_eq!(number(text, "TX-packets:"), 0);
    }
}
