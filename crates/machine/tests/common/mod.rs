//! The models that the tests know, and short ways to load a machine.
use iogate_machine::{Error, Machine, Model, Property, PropertyKind, Text};

/// edu, and an nvme with a property of every kind.
pub(crate) fn models() -> Vec<Model> {
    let property = |(name, kind)| Property { name, kind };
    let nvme = [
        ("size", PropertyKind::Size),
        ("serial", PropertyKind::Text),
        ("queues", PropertyKind::Integer),
        ("read-only", PropertyKind::Boolean),
    ];
    vec![
        Model {
            name: "edu",
            properties: Vec::new(),
        },
        Model {
            name: "nvme",
            properties: nvme.map(property).to_vec(),
        },
    ]
}

pub(crate) fn load(file: &str) -> Result<Machine, Error> {
    let text = Text {
        name: "m.toml",
        bytes: file.as_bytes(),
    };
    Machine::load(Some(text), &[], &models())
}

/// A machine from a file without its first line, `version = 1`.
#[allow(dead_code, reason = "not every test file reads good machine files")]
pub(crate) fn machine(file: &str) -> Machine {
    load(&format!("version = 1\n{file}")).unwrap_or_else(|error| panic!("{error}"))
}

/// What is said about a file without its first line, `version = 1`.
#[allow(dead_code, reason = "not every test file reads bad machine files")]
pub(crate) fn error(file: &str) -> String {
    load(&format!("version = 1\n{file}"))
        .unwrap_err()
        .to_string()
}
