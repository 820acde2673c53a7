//! `iogate run` in surroundings that forbid namespaces, mounts or what debuggers use: everything as elsewhere.

use std::path::Path;

use super::clients::{C_GROUPS, client_run, probe};
use super::guests::{Backend, linux_drives_nvme};
use super::{Case, Tier, command};
use crate::environment::Environment;
use crate::place::Person;
use crate::process::Job;
use crate::setup::{Bench, Linkage};
use crate::verdict::{About as _, Stop};

/// Manners that depend on how a session is made.
const MANNERS: [&str; 7] = [
    "exit-status",
    "stragglers",
    "supervisor-killed",
    "program-killed",
    "nested",
    "host-hidden",
    "host-shown",
];

/// What a program finds below `/sys` and `/dev`, in words: kinds, links, contents, and the ways to get there. Host
/// directories whose contents change by themselves are only listed by name.
const LOOK: &str = r#"
scratch=$PWD
cd /
for top in /sys/bus/pci /sys/devices/iogate /sys/kernel/iommu_groups /sys/class/vfio-dev /sys/module/vfio_pci; do
  find $top -printf '%p %y %l\n'
  find $top -type f -perm -400 -exec md5sum {} +
done
find -L /sys/bus/pci/devices -maxdepth 2 -name vendor
find /dev/vfio /dev/iommu -printf '%p %y %m\n'
stat -c '%n %F %t:%T' /dev/vfio/vfio /dev/iommu /dev/vfio/devices/*
ls -p /sys /sys/bus /sys/class /sys/kernel
realpath /sys/bus/pci/devices/*
readlink -f /sys/bus/pci/devices/*/iommu_group
for device in /sys/bus/pci/devices/*; do
  test -r $device/vendor && test ! -e $device/nothing && cat $device/subsystem/devices/${device##*/}/vendor
  ls $device/ $device/iommu_group/devices/ $device/subsystem/../cpu/devices/
done
cd /sys/bus/pci/devices && ls && cat ./*/class && pwd && pwd -P
readlink /proc/self/cwd
cd /sys/kernel/iommu_groups/0/devices && ls .. && pwd -P && cat */vendor && cd .. && pwd
(cd /dev/vfio && ls && ls .. | grep -x -e null -e vfio && test -c ./vfio && echo $PWD && cat ../null && cat ../../sys/class/net/lo/mtu)
cd $scratch && ln -s /sys/bus/pci/devices here && ls here && cat here/*/device
rm here
exec 2>&1
cat /sys/bus/pci/devices/nothing; ls /sys/bus/pci/nothing; cat /dev/vfio; cat /dev/vfio/vfio/x; ls /sys/bus/pci/devices/vendor
true
"#;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for environment in Environment::ALL {
        for person in Person::ALL {
            let mut case = |tier, name: &str, run: super::Run| {
                cases.push(Case::new(
                    tier,
                    format!("confined/{environment}/{name}/{person}"),
                    move |bench, log| {
                        bench.environment.set(Some(environment));
                        let ended = run(bench, log);
                        bench.environment.set(None);
                        ended
                    },
                ));
            };
            // Nobody looks into a process that is not dumpable without rights that are missing here.
            for group in C_GROUPS.into_iter().filter(|group| *group != "closed") {
                case(
                    Tier::Clients,
                    &format!("c-{group}"),
                    Box::new(move |bench, log| {
                        let client = bench.c_client(Linkage::Dynamic)?;
                        client_run(bench, log, person, &client, &[group], &[])
                    }),
                );
            }
            for mode in ["type1v2", "iommufd"] {
                case(
                    Tier::Clients,
                    &format!("vfio-ioctls-{mode}"),
                    Box::new(move |bench, log| {
                        let client = bench.rust_client()?;
                        client_run(bench, log, person, &client, &[mode], &[])
                    }),
                );
            }
            case(
                Tier::Clients,
                "probe",
                Box::new(move |bench, log| probe(bench, log, person)),
            );
            for (name, check) in command::CHECKS {
                if MANNERS.contains(&name) {
                    case(
                        Tier::Clients,
                        &format!("run-{name}"),
                        Box::new(move |bench, log| {
                            check(&command::Session::new(bench, log, person)?)
                        }),
                    );
                }
            }
            if environment == Environment::Container {
                case(
                    Tier::Clients,
                    "guide",
                    Box::new(move |bench, log| guide(bench, log, person)),
                );
            }
            case(
                Tier::Clients,
                "doctor",
                Box::new(move |bench, log| doctor(bench, log, person, environment)),
            );
            case(
                Tier::Clients,
                "look",
                Box::new(move |bench, log| looks_the_same(bench, log, person, environment)),
            );
            for (backend, word) in [(Backend::Legacy, "legacy"), (Backend::Iommufd, "iommufd")] {
                case(
                    Tier::Guests,
                    &format!("qemu-{word}"),
                    Box::new(move |bench, log| linux_drives_nvme(bench, log, person, backend)),
                );
            }
        }
    }
    cases
}

/// What the guide has a container engine run does so where the engine would run it.
fn guide(bench: &Bench, log: &Path, person: Person) -> Result<(), Stop> {
    let path = bench.site.root.join("docs/guide.md");
    let text = std::fs::read_to_string(&path).about(path.display())?;
    let example = text.lines().find(|line| line.starts_with("podman run "));
    let words = example.and_then(|line| line.split_once("/iogate "));
    let Some((_, words)) = words else {
        return Err(Stop::failed("the guide has no example of a container"));
    };
    let place = bench.place(person)?;
    let mut command = place.command(&bench.iogate_of(&place)?);
    command.args(words.split_whitespace());
    Job::new(command, log)
        .user(place.user)
        .limit(60)
        .run()?
        .success("the guide's example")?;
    let report = place.scratch().join("report.json");
    let found = std::fs::read_to_string(&report).about(report.display())?;
    std::fs::remove_file(&report).about(report.display())?;
    match found.contains("\"schema\"") {
        true => Ok(()),
        false => Err(Stop::failed("the report has no schema")),
    }
}

/// The doctor says which way is taken and what keeps from the other.
fn doctor(bench: &Bench, log: &Path, person: Person, environment: Environment) -> Result<(), Stop> {
    let place = bench.place(person)?;
    let mut command = place.command(&bench.iogate_of(&place)?);
    command.arg("doctor");
    let ended = Job::new(command, log)
        .user(place.user)
        .limit(60)
        .output(place.scratch().join("doctor.out"))
        .run()?
        .success("iogate doctor")?;
    let said: &[&str] = match environment {
        Environment::NoUserNamespaces => &["path calls", "pidfd_getfd", "No space left"],
        Environment::Container => &["path calls", "/proc/PID/fd", "CAP_SYS_PTRACE"],
        Environment::NoMounts => &["path calls", "pidfd_getfd", "Permission denied"],
    };
    for words in said {
        if !ended.output.contains(words) {
            return Err(Stop::failed(format!("the doctor does not say {words:?}")));
        }
    }
    Ok(())
}

/// A program sees the same as where mounts can be made.
fn looks_the_same(
    bench: &Bench,
    log: &Path,
    person: Person,
    environment: Environment,
) -> Result<(), Stop> {
    let look = |name: &str| {
        let place = bench.place(person)?;
        let mut command = place.command(&bench.iogate_of(&place)?);
        let script = format!("cd {}\n{LOOK}", place.scratch().display());
        command.args(["run", "--", "sh", "-c", &script]);
        command.env("LC_ALL", "C");
        let ended = Job::new(command, log)
            .user(place.user)
            .limit(60)
            .output(place.scratch().join(name))
            .run()?
            .success("a look around")?;
        let mut lines: Vec<_> = ended.output.lines().map(str::to_owned).collect();
        lines.sort();
        Ok::<_, Stop>(lines)
    };
    let confined = look("confined.out")?;
    bench.environment.set(None);
    let free = look("free.out");
    bench.environment.set(Some(environment));
    let free = free?;
    let missing: Vec<_> = free
        .iter()
        .filter(|line| !confined.contains(line))
        .collect();
    let added: Vec<_> = confined
        .iter()
        .filter(|line| !free.contains(line))
        .collect();
    if missing.is_empty() && added.is_empty() && free.len() > 100 {
        return Ok(());
    }
    std::fs::write(log, format!("missing: {missing:#?}\nadded: {added:#?}\n"))
        .about(log.display())?;
    Err(Stop::failed(format!(
        "{} lines are missing and {} are added, of {}",
        missing.len(),
        added.len(),
        free.len()
    )))
}
