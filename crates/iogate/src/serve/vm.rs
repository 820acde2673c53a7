//! A virtual machine started with our devices: once as far as its firmware, which
//! says where the units' registers are, then with the table that names them.

use std::ffi::OsString;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use iogate_supervisor::{Caught, HeldSignals};
use rustix::process::{Pid, Signal, kill_process};

use super::directory::Directory;
use super::machine::Running;
use super::qemu::{self, User};
use super::{refused, table};
use crate::session::Refusal;

/// How long firmware may take to place the devices.
const FIRMWARE: Duration = Duration::from_secs(60);
/// How long a client that was killed may take to be gone.
const GONE: Duration = Duration::from_secs(10);
/// How often a machine that runs is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// What of QEMU's words is shown when it fails before it begins.
const WORDS: u64 = 4096;

/// How it ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ended {
    Exited(u8),
    Signalled(i32),
}

impl From<ExitStatus> for Ended {
    fn from(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Exited(u8::try_from(code).unwrap_or(u8::MAX)),
            (None, signal) => Self::Signalled(signal.unwrap_or_default()),
        }
    }
}

/// Runs `program` to its end.
pub(crate) fn run(
    held: &HeldSignals,
    running: &Running,
    directory: &Directory,
    program: &OsString,
    user: &User,
    bars: &[u64],
) -> Result<Ended, Refusal> {
    let additions = qemu::additions(user, running)?;
    let bars = match bars {
        [] if running.units().next().is_some() => {
            let mut firmware = Command::new(program);
            firmware.args(&additions).args(user.for_firmware());
            match firmware_places(held, running, firmware)? {
                Ok(bars) => bars,
                Err(ended) => return Ok(ended),
            }
        }
        bars => bars.to_vec(),
    };
    directory.write_table(&table::table(&running.plan, &bars).map_err(refused)?)?;
    let mut command = Command::new(program);
    command.args(&additions).args(user.words());
    if !bars.is_empty() {
        command.args(qemu::table(&directory.table())?);
    }
    let mut child = start(held, &mut command)?;
    let mut told: Vec<_> = bars.into_iter().map(Some).collect();
    loop {
        match held.wait(LOOK) {
            Caught::Sent(signal) => pass_on(&child, signal),
            // The terminal has told it already.
            Caught::Typed(_) | Caught::Other => {}
        }
        if let Some(status) = ended(&mut child)? {
            return Ok(status.into());
        }
        watch(running, directory, &mut told)?;
    }
}

fn start(held: &HeldSignals, command: &mut Command) -> Result<Child, Refusal> {
    let name = command.get_program().to_owned();
    let started = held.spawn(command);
    started.map_err(|error| Refusal(format!("{}: {error}", name.display())))
}

fn ended(child: &mut Child) -> Result<Option<ExitStatus>, Refusal> {
    let status = child.try_wait();
    status.map_err(|error| Refusal(format!("cannot wait for QEMU: {error}")))
}

fn pass_on(child: &Child, signal: i32) {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    if let (Some(pid), Some(signal)) = (pid, Signal::from_named_raw(signal)) {
        // It may have ended meanwhile.
        let _ = kill_process(pid, signal);
    }
}

/// Starts the machine as far as its firmware has placed the units' registers,
/// and says where; or how we are to end, when somebody wants that meanwhile.
fn firmware_places(
    held: &HeldSignals,
    running: &Running,
    mut command: Command,
) -> Result<Result<Vec<u64>, Ended>, Refusal> {
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = start(held, command.stderr(Stdio::piped()))?;
    let words = child.stderr.take();
    // Read at its side, so that QEMU never waits for us to read.
    let reader = std::thread::spawn(move || {
        let mut text = Vec::new();
        if let Some(mut words) = words {
            let _ = words.by_ref().take(WORDS).read_to_end(&mut text);
            let _ = std::io::copy(&mut words, &mut std::io::sink());
        }
        String::from_utf8_lossy(&text).into_owned()
    });
    let end = Instant::now().checked_add(FIRMWARE);
    let found = loop {
        let soon = Instant::now().checked_add(Duration::from_millis(5));
        let soon = soon.unwrap_or_else(Instant::now);
        let units = running.units();
        let places = units.map(|unit| unit.seat.wait_for(soon, || unit.placed()));
        if let Some(bars) = places.collect::<Option<Vec<u64>>>() {
            break Some(Ok(bars));
        }
        if let Caught::Sent(signal) | Caught::Typed(signal) = held.wait(Duration::ZERO) {
            break Some(Err(Ended::Signalled(signal)));
        }
        if ended(&mut child)?.is_some() || end.is_none_or(|end| Instant::now() > end) {
            break None;
        }
    };
    let _ = child.kill();
    let status = child.wait();
    let words = reader.join().unwrap_or_default();
    let gone = Instant::now().checked_add(GONE);
    let is_alone = gone.is_some_and(|end| running.wait_alone(end));
    match found {
        Some(found) if is_alone => Ok(found),
        Some(_) => Err(Refusal("QEMU was killed and is still connected".to_owned())),
        None => {
            let how = match status.map(Ended::from) {
                Ok(Ended::Exited(code)) => format!("QEMU ended with status {code}"),
                _ => format!(
                    "the firmware has not placed the unit's registers in {} seconds: give --bar",
                    FIRMWARE.as_secs()
                ),
            };
            let words = words.trim_end();
            let words = if words.is_empty() {
                ""
            } else {
                &format!("\n{words}")
            };
            Err(Refusal(format!("{how}{words}")))
        }
    }
}

/// Looks whether the units' registers stand where the table says; where they do
/// not, the table in the file is made right for the next start.
pub(crate) fn watch(
    running: &Running,
    directory: &Directory,
    told: &mut [Option<u64>],
) -> Result<(), Refusal> {
    let places: Vec<_> = running.units().map(|unit| unit.placed()).collect();
    let moved = places
        .iter()
        .zip(&*told)
        .any(|(now, told)| now.is_some() && now != told);
    let Some(bases) = places.iter().copied().collect::<Option<Vec<u64>>>() else {
        return Ok(());
    };
    if !moved {
        return Ok(());
    }
    directory.write_table(&table::table(&running.plan, &bases).map_err(refused)?)?;
    told.copy_from_slice(&places);
    let places: Vec<_> = bases.iter().map(|base| format!("{base:#x}")).collect();
    eprintln!(
        "iogate: the units' registers stand at {}: {} says so from now on, start the machine anew",
        places.join(", "),
        directory.table().display()
    );
    Ok(())
}
