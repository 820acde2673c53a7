//! The clients tier: programs on the raw uAPI in C, on the `vfio-ioctls` crate, and our own `probe`.

use std::fs;
use std::path::Path;

use super::{Case, Tier};
use crate::place::Person;
use crate::process::Job;
use crate::setup::{Bench, Linkage};
use crate::verdict::{About as _, Stop};

/// The groups of checks that `tests/clients/c` knows.
pub(super) const C_GROUPS: [&str; 9] = [
    "legacy",
    "interrupts",
    "dma",
    "rules",
    "nvme",
    "lifecycle",
    "iommufd",
    "hostile",
    "closed",
];

/// Groups that are about one kind of machine.
const SPECIAL: [(&str, &str); 6] = [
    ("migration", "[[device]]\nmodel = 'virtio-net'\n"),
    ("mediated", "[[device]]\nmodel = 'edu'\nmediated = true\n"),
    (
        "tracking",
        "[[iommu]]\nname = 'unit'\ndirty-tracking = true\n[[device]]\nmodel = 'edu'\n",
    ),
    (
        "pasid",
        "[[iommu]]\nname = 'unit'\npasid-bits = 10\n[[device]]\nmodel = 'edu'\npasid = true\n",
    ),
    ("physical", "[[device]]\nmodel = 'edu'\niommu = 'none'\n"),
    (
        "virtual-functions",
        "[[device]]\nmodel = 'virtio-net'\nvfs = 4\n",
    ),
];

/// A machine whose registers are mapped.
const MAPPED: [&str; 2] = ["--device=edu,mmio=map", "--device=nvme,size=64M,mmio=map"];

/// The groups that run on it: what is said of mappings, and what is hard on a
/// tracer.
const MAPPED_GROUPS: [&str; 4] = ["mapped", "interrupts", "lifecycle", "hostile"];

/// Machines whose NVMe has memory that programs map.
const BUFFER: [(&str, [&str; 2]); 2] = [
    ("trap", ["--device=edu", "--device=nvme,size=64M,cmb=1M"]),
    (
        "map",
        [
            "--device=edu,mmio=map",
            "--device=nvme,size=64M,cmb=1M,mmio=map",
        ],
    ),
];

/// By what the clients open devices and maps memory.
const MODES: [&str; 5] = ["type1", "type1v2", "compat-group", "compat-cdev", "iommufd"];

pub(super) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for person in Person::ALL {
        for (linkage, word) in [(Linkage::Dynamic, "dynamic"), (Linkage::Static, "static")] {
            for group in C_GROUPS {
                cases.push(Case::new(
                    Tier::Clients,
                    format!("c/{group}/{word}/{person}"),
                    move |bench, log| {
                        let client = bench.c_client(linkage)?;
                        client_run(bench, log, person, &client, &[group], &[])
                    },
                ));
            }
            for (group, machine) in SPECIAL {
                cases.push(Case::new(
                    Tier::Clients,
                    format!("c/{group}/{word}/{person}"),
                    move |bench, log| {
                        let client = bench.c_client(linkage)?;
                        let path = bench.place(person)?.scratch().join("machine.toml");
                        fs::write(&path, format!("version = 1\n{machine}"))
                            .about(path.display())?;
                        let option = format!("--machine={}", path.display());
                        client_run(bench, log, person, &client, &[group], &[&option])
                    },
                ));
            }
            for group in MAPPED_GROUPS {
                cases.push(Case::new(
                    Tier::Clients,
                    format!("c-mapped/{group}/{word}/{person}"),
                    move |bench, log| {
                        let client = bench.c_client(linkage)?;
                        client_run(bench, log, person, &client, &[group], &MAPPED)
                    },
                ));
            }
        }
        for (mode, options) in &BUFFER {
            cases.push(Case::new(
                Tier::Clients,
                format!("c-buffer/{mode}/{person}"),
                move |bench, log| {
                    let client = bench.c_client(Linkage::Dynamic)?;
                    client_run(bench, log, person, &client, &["buffer"], options)
                },
            ));
        }
        for mode in MODES {
            cases.push(Case::new(
                Tier::Clients,
                format!("c-mode/{mode}/{person}"),
                move |bench, log| {
                    let client = bench.c_client(Linkage::Dynamic)?;
                    client_run(bench, log, person, &client, &["mode", mode], &[])
                },
            ));
        }
        for backend in MODES {
            cases.push(Case::new(
                Tier::Clients,
                format!("vfio-ioctls/{backend}/{person}"),
                move |bench, log| {
                    let client = bench.rust_client()?;
                    client_run(bench, log, person, &client, &[backend], &[])
                },
            ));
        }
        if person == Person::Root {
            // Who may open /dev/kvm is the machine's to say: root may.
            cases.push(Case::new(
                Tier::Clients,
                format!("c/kvm/dynamic/{person}"),
                move |bench, log| {
                    if !Path::new("/dev/kvm").exists() {
                        return Err(Stop::not_run(
                            "this machine has no /dev/kvm",
                            "run where KVM is: a machine with virtualisation enabled",
                        ));
                    }
                    let client = bench.c_client(Linkage::Dynamic)?;
                    client_run(bench, log, person, &client, &["kvm"], &[])
                },
            ));
        }
        cases.push(Case::new(
            Tier::Clients,
            format!("probe/{person}"),
            move |bench, log| probe(bench, log, person),
        ));
    }
    cases
}

/// `iogate run OPTIONS -- CLIENT GROUP`, which prints `ok NAME` for each of its checks and `done` at its end.
pub(super) fn client_run(
    bench: &Bench,
    log: &Path,
    person: Person,
    client: &Path,
    words: &[&str],
    options: &[&str],
) -> Result<(), Stop> {
    let place = bench.place(person)?;
    let mut command = place.command(&bench.iogate_of(&place)?);
    command
        .arg("run")
        .args(options)
        .arg("--")
        .arg(place.program(client)?)
        .args(words);
    let ended = Job::new(command, log)
        .user(place.user)
        .limit(120)
        .run()?
        .success(&format!("client {}", words.join(" ")))?;
    if !ended.log.lines().any(|line| line == "done") {
        return Err(Stop::failed("the client did not come to its end"));
    }
    // What cannot be executed is named: the instruction, its address, the register it wanted.
    let named = |line: &str| {
        let rest = line.split_once("the instruction `fild dword ptr [");
        rest.is_some_and(|(_, rest)| {
            rest.contains("` at 0x")
                && rest.contains("cannot be executed on register 0x4 of BAR 0 of 0000:")
        })
    };
    if words == ["mapped"] && !ended.log.lines().any(named) {
        return Err(Stop::failed("an unknown instruction is not named"));
    }
    Ok(())
}

pub(super) fn probe(bench: &Bench, log: &Path, person: Person) -> Result<(), Stop> {
    let place = bench.place(person)?;
    let mut command = place.command(&bench.iogate_of(&place)?);
    command.args(["run", "--", "iogate", "probe"]);
    let ended = Job::new(command, log)
        .user(place.user)
        .limit(60)
        .output(place.scratch().join("probe.out"))
        .run()?
        .success("iogate probe")?;
    for word in ["edu", "nvme"] {
        if !ended.output.to_lowercase().contains(word) {
            return Err(Stop::failed(format!("probe does not tell of the {word}")));
        }
    }
    Ok(())
}
