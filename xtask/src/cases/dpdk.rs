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
/// DPDK's memory.
const MEMORY: u64 = 128 << 20;
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
    }
    cases
}

/// testpmd forwards what virtio-net's loopback gives back, and counts it.
fn testpmd(bench: &Bench, log: &Path, person: Person, pages: Pages) -> Result<(), Stop> {
    let session = Session::new(bench, person)?;
    let _kept = match pages {
        Pages::Small => None,
        Pages::Huge => Some(HugePages::provide(MEMORY / HUGE_PAGE + 8)?),
    };
    let machine = session.machine(NETWORK)?;
    let mut command = session.run(&machine);
    session.testpmd(&mut command, pages);
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
    let left = format!("{} mappings were never unmapped", MEMORY / pages.size());
    if !ended.log.contains(&left) {
        return Err(Stop::failed(format!("it is not so that {left}")));
    }
    bench.progress.print(&format!("  {received} packets"));
    Ok(())
}

/// The largest number that stands behind a word.
fn number(text: &str, word: &str) -> u64 {
    text.split(word)
        .skip(1)
        .filter_map(|rest| rest.split_whitespace().next()?.parse().ok())
        .max()
        .unwrap_or(0)
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

    /// One of DPDK's programs with its options, on the first processor that there is.
    fn program(&self, command: &mut Command, name: &str, pages: Pages) {
        command.args(self.dpdk.program(&format!("usr/bin/{name}")));
        // By name: a whole directory is refused where everybody may write to one above it.
        for driver in DRIVERS {
            command.args(["-d", &format!("librte_{driver}.so.25")]);
        }
        command.args([pages.option(), "-m", &(MEMORY >> 20).to_string()]);
        command.args("--iova-mode=va --no-telemetry --no-shconf".split(' '));
        command.arg(format!("--lcores=(0,1)@{}", crate::process::processor()));
    }

    fn testpmd(&self, command: &mut Command, pages: Pages) {
        self.program(command, "dpdk-testpmd", pages);
        let options = "-- --forward-mode=io --no-flush-rx --tx-first --stats-period=1 \
                       --nb-cores=1 --total-num-mbufs=4096 --no-lsc-interrupt";
        command.args(options.split_whitespace());
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
