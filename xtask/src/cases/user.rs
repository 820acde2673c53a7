//! `iogate run --user`: as root, on a machine that allows everything and in each of the surroundings.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use super::{Case, Tier};
use crate::environment::Environment;
use crate::place::Person;
use crate::process::Job;
use crate::setup::{Bench, Linkage};
use crate::verdict::{About as _, Stop};

/// A user that every machine has.
const NAME: &str = "nobody";

pub(super) fn cases() -> Vec<Case> {
    let environments = Environment::ALL.map(Some);
    let mut cases: Vec<_> = std::iter::once(None)
        .chain(environments)
        .map(|environment| {
            let place = environment.map_or("free".to_owned(), |place| place.to_string());
            Case::new(Tier::Clients, format!("user/{place}"), move |bench, log| {
                bench.environment.set(environment);
                let ended = runs_as_another(bench, log);
                bench.environment.set(None);
                ended
            })
        })
        .collect();
    for person in Person::ALL {
        cases.push(Case::new(
            Tier::Clients,
            format!("user/refused/{person}"),
            move |bench, log| is_refused(bench, log, person),
        ));
    }
    cases
}

/// The user's entry in `/etc/passwd`.
fn entry() -> Result<Vec<String>, Stop> {
    let all = fs::read_to_string("/etc/passwd").about("/etc/passwd")?;
    let mut entries = all
        .lines()
        .map(|line| line.split(':').map(str::to_owned).collect());
    entries
        .find(|entry: &Vec<String>| entry.len() == 7 && entry[0] == NAME)
        .ok_or_else(|| Stop::not_run(format!("no user {NAME} in /etc/passwd"), "add it"))
}

fn runs_as_another(bench: &Bench, log: &Path) -> Result<(), Stop> {
    let place = bench.place(Person::Root)?;
    let client = place.program(&bench.c_client(Linkage::Dynamic)?)?;
    let entry = entry()?;
    let id: u32 = entry[2].parse().unwrap_or_default();
    let directory = place.directory().join("user");
    // Of an earlier case; there may be none.
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir(&directory).about(directory.display())?;
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).about("permissions")?;
    std::os::unix::fs::chown(&directory, Some(id), None).about(directory.display())?;
    let run = |words: &[&str]| {
        let mut command = place.command(&bench.iogate_of(&place)?);
        command.current_dir(&directory).env("TMPDIR", &directory);
        command.args(["run", "--user", NAME]).args(words);
        Job::new(command, log)
            .limit(120)
            .output(directory.join("out"))
            .run()?
            .success("iogate run --user")
    };
    let script = "id -u; id -ru; id -g; echo $HOME $USER $LOGNAME $SHELL
        touch mine && grep CapEff /proc/self/status
        test -O /sys/bus/pci/devices/0000:01:00.0/driver_override && echo owned
        test -w /etc/passwd || echo no more";
    let ended = run(&[
        "--report",
        "report.json",
        "--timeline",
        "time.json",
        "--",
        "sh",
        "-c",
        script,
    ])?;
    let [uid, gid, home, shell] = [2, 3, 5, 6].map(|field| entry[field].as_str());
    let expected = format!(
        "{uid}\n{uid}\n{gid}\n{home} {NAME} {NAME} {shell}\nCapEff:\t0000000000000000\nowned\nno more\n"
    );
    if ended.output != expected {
        let output = ended.output;
        return Err(Stop::failed(format!("{output:?} instead of {expected:?}")));
    }
    for name in ["report.json", "time.json", "mine"] {
        let found = fs::metadata(directory.join(name)).about(name)?;
        if found.uid() != id {
            return Err(Stop::failed(format!("{name} is not the user's")));
        }
    }
    let client = client.display().to_string();
    for group in ["legacy", "dma", "interrupts"] {
        let ended = run(&["--", &client, group])?;
        if !ended.output.lines().any(|line| line == "done") {
            return Err(Stop::failed("the client did not come to its end"));
        }
    }
    Ok(())
}

fn is_refused(bench: &Bench, log: &Path, person: Person) -> Result<(), Stop> {
    let place = bench.place(person)?;
    let (name, why) = match person {
        Person::Root => ("no-such-user-here", "there is no user no-such-user-here"),
        Person::Ordinary => (NAME, "only root"),
    };
    let mut command = place.command(&bench.iogate_of(&place)?);
    command.args(["run", "--user", name, "--", "true"]);
    let ended = Job::new(command, log).user(place.user).limit(60).run()?;
    if ended.status.code() == Some(125) && ended.log.contains(why) {
        return Ok(());
    }
    Err(Stop::failed(format!("{} instead of 125", ended.how())))
}
