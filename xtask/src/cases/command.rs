//! The manners of `iogate run`: exit statuses, signals, output, and what remains when either side is killed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

use super::{Case, Tier};
use crate::place::{Person, Place};
use crate::process::{self, Ended, Job};
use crate::setup::{Bench, Linkage};
use crate::verdict::{About as _, Stop};

pub(super) type Check = fn(&Session<'_>) -> Result<(), Stop>;

pub(super) const CHECKS: [(&str, Check); 12] = [
    ("exit-status", exit_status),
    ("death-by-signal", death_by_signal),
    ("fail-on-faults", fail_on_faults),
    ("stdout", nothing_of_ours_on_stdout),
    ("interrupt-once", interrupt_arrives_once),
    ("stragglers", waits_for_stragglers),
    ("supervisor-killed", supervisor_killed),
    ("program-killed", program_killed),
    ("nested", nested_runs_join),
    ("report", report_is_written),
    ("host-hidden", host_devices_are_hidden),
    ("host-shown", host_devices_are_shown),
];

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for person in Person::ALL {
        for (name, check) in CHECKS {
            cases.push(Case::new(
                Tier::Clients,
                format!("run/{name}/{person}"),
                move |bench, log| check(&Session::new(bench, log, person)?),
            ));
        }
    }
    cases
}

/// One case's view of the bench.
pub(super) struct Session<'a> {
    place: Rc<Place>,
    iogate: PathBuf,
    client: PathBuf,
    log: &'a Path,
}

impl<'a> Session<'a> {
    pub(super) fn new(bench: &Bench, log: &'a Path, person: Person) -> Result<Self, Stop> {
        let client = bench.c_client(Linkage::Dynamic)?;
        let place = bench.place(person)?;
        Ok(Self {
            iogate: bench.iogate_of(&place)?,
            client: place.program(&client)?,
            place,
            log,
        })
    }

    fn job(&self, command: Command) -> Job<'a> {
        Job::new(command, self.log).user(self.place.user).limit(60)
    }

    /// `iogate run OPTIONS -- PROGRAM`, both split at spaces.
    fn command(&self, options: &str, program: &str) -> Command {
        let mut command = self.place.command(&self.iogate);
        command
            .arg("run")
            .args(options.split_whitespace())
            .arg("--");
        for word in program.split_whitespace() {
            match word {
                "CLIENT" => command.arg(&self.client),
                word => command.arg(word),
            };
        }
        command
    }

    fn shell(&self, options: &str, script: &str) -> Command {
        let mut command = self.command(options, "sh -c");
        command.arg(script);
        command
    }

    fn run(&self, command: Command) -> Result<Ended, Stop> {
        self.job(command).run()
    }

    fn run_apart(&self, command: Command) -> Result<Ended, Stop> {
        self.job(command)
            .output(self.place.scratch().join("stdout"))
            .run()
    }

    fn expect_code(&self, command: Command, code: i32) -> Result<(), Stop> {
        let words: Vec<String> = command
            .get_args()
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        let words = words.join(" ");
        let ended = self.run(command)?;
        ensure(
            ended.status.code() == Some(code),
            &format!("iogate {words}: {} instead of {code}", ended.how()),
        )
    }

    /// What a run could leave on the machine: mounts, files, processes.
    fn remains(&self) -> Result<String, Stop> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").about("mountinfo")?;
        let ours: Vec<&str> = mounts
            .lines()
            .filter(|line| line.contains("iogate") || line.contains("vfio"))
            .collect();
        let mut files: Vec<_> = std::fs::read_dir(self.place.scratch())
            .about("scratch")?
            .flatten()
            .map(|entry| entry.file_name())
            .collect();
        files.sort();
        let here = self.place.directory().display().to_string();
        let processes: Vec<_> = std::fs::read_dir("/proc")
            .about("/proc")?
            .flatten()
            .filter(|entry| {
                std::fs::read(entry.path().join("cmdline"))
                    .is_ok_and(|line| String::from_utf8_lossy(&line).contains(&here))
            })
            .map(|entry| entry.file_name())
            .collect();
        Ok(format!(
            "mounts {ours:?}, files {files:?}, processes {processes:?}"
        ))
    }

    /// Nothing is left that was not there before, a moment after the end.
    fn expect_same_remains(&self, before: &str) -> Result<(), Stop> {
        let mut after = String::new();
        for _ in 0..100 {
            after = self.remains()?;
            if after == before {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Err(Stop::failed(format!("before: {before}; after: {after}")))
    }
}

fn ensure(holds: bool, otherwise: &str) -> Result<(), Stop> {
    if holds {
        Ok(())
    } else {
        Err(Stop::failed(otherwise))
    }
}

fn exit_status(session: &Session<'_>) -> Result<(), Stop> {
    session.expect_code(session.command("", "true"), 0)?;
    session.expect_code(session.shell("", "exit 7"), 7)?;
    session.expect_code(session.command("", "./no-such-program"), 127)?;
    session.expect_code(session.command("", "no-such-program"), 127)?;
    std::fs::write(session.place.scratch().join("not-executable"), "").about("scratch")?;
    session.expect_code(session.command("", "./not-executable"), 126)?;
    session.expect_code(session.command("--machine ./no-such-file", "true"), 125)?;
    session.expect_code(session.command("--device no-such-model", "true"), 125)
}

fn death_by_signal(session: &Session<'_>) -> Result<(), Stop> {
    use std::os::unix::process::ExitStatusExt as _;
    for (name, number) in [("TERM", libc::SIGTERM), ("KILL", libc::SIGKILL)] {
        let ended = session.run(session.shell("", &format!("kill -{name} $$")))?;
        ensure(
            ended.status.signal() == Some(number),
            &format!("the program died by SIG{name}, iogate: {}", ended.how()),
        )?;
    }
    Ok(())
}

fn fail_on_faults(session: &Session<'_>) -> Result<(), Stop> {
    let on = "--fail-on faults";
    session.expect_code(session.command("", "CLIENT fault 0"), 0)?;
    session.expect_code(session.command(on, "CLIENT fault 0"), 99)?;
    session.expect_code(session.command(on, "CLIENT fault 3"), 3)?;
    session.expect_code(session.command(on, "CLIENT dma"), 99)?;
    session.expect_code(session.command(on, "CLIENT nvme"), 0)?;
    let ended = session.run(session.command("", "CLIENT fault 0"))?;
    ensure(
        ended.log.contains("DMA fault 1") && ended.log.contains("not mapped"),
        "the fault is not reported on standard error",
    )
}

fn nothing_of_ours_on_stdout(session: &Session<'_>) -> Result<(), Stop> {
    let options = "--trace ioctl_*";
    let ended = session.run_apart(session.command(options, "CLIENT fault 0"))?;
    let expected = "ok fault\ndone\n";
    ensure(
        ended.output == expected,
        &format!("standard output is {:?}, not {expected:?}", ended.output),
    )?;
    ensure(
        ended.log.contains("ioctl_map_dma"),
        "--trace 'ioctl_*' does not show ioctl_map_dma on standard error",
    )
}

/// A terminal sends SIGINT to iogate and the program alike; `kill` sends it to iogate alone.
fn interrupt_arrives_once(session: &Session<'_>) -> Result<(), Stop> {
    for pressed in [true, false] {
        let mut started = session
            .job(session.command("", "CLIENT count-interrupts"))
            .terminal()
            .start()?;
        ensure(started.wait_for("ready"), "the program did not get ready")?;
        if pressed {
            started.press_interrupt()?;
        } else {
            process::signal(started.id(), libc::SIGINT);
        }
        let ended = started.finish()?;
        let how = if pressed { "Ctrl-C" } else { "kill" };
        ensure(
            ended.status.code() == Some(1),
            &format!(
                "{how}: the program counts SIGINT in its status: {}",
                ended.how()
            ),
        )?;
    }
    Ok(())
}

fn waits_for_stragglers(session: &Session<'_>) -> Result<(), Stop> {
    let ended = session.run(session.shell("", "sleep 1 & exit 4"))?;
    ensure(
        ended.status.code() == Some(4),
        &format!("status 4 became {}", ended.how()),
    )?;
    ensure(
        ended.elapsed >= Duration::from_millis(900),
        "iogate ended before the last process under it",
    )?;
    ensure(ended.log.contains("sleep"), "the straggler is not named")
}

fn supervisor_killed(session: &Session<'_>) -> Result<(), Stop> {
    let before = session.remains()?;
    for _ in 0..3 {
        let mut started = session.job(session.command("", "CLIENT hold")).start()?;
        ensure(started.wait_for("ready"), "the program did not get ready")?;
        process::signal(started.id(), libc::SIGKILL);
        // It fails when the program outlives its supervisor.
        started.finish()?;
        session.expect_same_remains(&before)?;
    }
    Ok(())
}

fn program_killed(session: &Session<'_>) -> Result<(), Stop> {
    let before = session.remains()?;
    let mut started = session.job(session.command("", "CLIENT hold")).start()?;
    ensure(started.wait_for("ready "), "the program did not get ready")?;
    let text = started.log_so_far();
    let id = text
        .split("ready ")
        .nth(1)
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .ok_or_else(|| Stop::failed("the program did not tell its id"))?;
    process::signal(id, libc::SIGKILL);
    let ended = started.finish()?;
    use std::os::unix::process::ExitStatusExt as _;
    ensure(
        ended.status.signal() == Some(libc::SIGKILL),
        &format!("the program died by SIGKILL, iogate: {}", ended.how()),
    )?;
    session.expect_same_remains(&before)
}

fn nested_runs_join(session: &Session<'_>) -> Result<(), Stop> {
    session.expect_code(session.command("", "iogate run -- CLIENT fault 5"), 5)?;
    let ended = session.run_apart(session.shell(
        "",
        "directory=$(dirname $(command -v iogate)) && ls $directory",
    ))?;
    ensure(
        ended.output == "iogate\n",
        &format!("the directory on the PATH holds {:?}", ended.output),
    )
}

fn report_is_written(session: &Session<'_>) -> Result<(), Stop> {
    let report = session.place.scratch().join("report.json");
    let read = || {
        let text = std::fs::read_to_string(&report).about(report.display());
        // The next run writes it afresh.
        let _ = std::fs::remove_file(&report);
        text
    };
    let options = "--report ./report.json";
    session.expect_code(session.command(options, "true"), 0)?;
    let clean = read()?;
    ensure(
        clean.contains("\"schema\""),
        "the clean report has no schema",
    )?;
    session.expect_code(session.command(options, "CLIENT fault 0"), 0)?;
    let faulty = read()?;
    ensure(
        faulty.contains("\"schema\"") && faulty.contains("\"0x"),
        "the report has no address in it",
    )?;
    session.run(session.shell(options, "kill -KILL $$"))?;
    ensure(
        read()?.contains("\"schema\""),
        "no report of a killed program",
    )
}

/// Bridges apart, the program sees the classes of edu and nvme, and the rest of the machine as it is.
fn host_devices_are_hidden(session: &Session<'_>) -> Result<(), Stop> {
    let ended = session.run_apart(session.shell(
        "",
        "grep -hv ^0x06 /sys/bus/pci/devices/*/class | sort; \
         ls -d /dev/null /dev/vfio/vfio /dev/vfio/devices /dev/iommu /sys/devices/system/cpu",
    ))?;
    let expected = "0x00ff00\n0x010802\n/dev/iommu\n/dev/null\n/dev/vfio/devices\n\
                    /dev/vfio/vfio\n/sys/devices/system/cpu\n";
    ensure(
        ended.output == expected,
        &format!("the program sees {:?}, not {expected:?}", ended.output),
    )
}

/// Beside the machine's own functions, and an error that names both where they collide. A machine
/// without PCI functions shows the session's only, and nothing collides.
fn host_devices_are_shown(session: &Session<'_>) -> Result<(), Stop> {
    let own = |path: &str| -> Vec<String> {
        let names = std::fs::read_dir(path).into_iter().flatten().flatten();
        names
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect()
    };
    let theirs = own("/sys/bus/pci/devices");
    let mut expected = theirs.clone();
    expected.extend(["9abc:00:01.0", "9abc:01:00.0"].map(str::to_owned));
    expected.sort();
    let options = "--host-pci --device edu,at=9abc:01:00.0,group=9000";
    let ended = session.run_apart(session.command(options, "ls /sys/bus/pci/devices"))?;
    let seen: Vec<&str> = ended.output.lines().collect();
    // The root port's group may be one that the machine has.
    let groups = own("/sys/kernel/iommu_groups");
    ensure(
        seen == expected || !groups.is_empty() && ended.status.code() == Some(125),
        &format!("the program sees {seen:?}, not {expected:?}"),
    )?;
    let Some(taken) = theirs.iter().find(|name| name.starts_with("0000:00:")) else {
        return Ok(());
    };
    let options = format!("--host-pci --device edu,at={taken}");
    let ended = session.run(session.command(&options, "true"))?;
    let told = ended.log.contains(taken) && ended.log.contains("the machine's own there");
    ensure(
        ended.status.code() == Some(125) && told,
        &format!(
            "{taken} of both: {}, and the log does not say so",
            ended.how()
        ),
    )
}
