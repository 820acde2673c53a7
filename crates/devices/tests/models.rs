//! How devices are asked for by name.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::sync::Arc;

use common::Interrupted;
use iogate_devices::{Properties, Slot, Value, build, models};

fn refusal(model: &str, properties: &[(&str, Value)]) -> String {
    let properties: Properties = properties
        .iter()
        .map(|(name, value)| ((*name).to_owned(), value.clone()))
        .collect();
    let slot = Slot {
        source: "0000:01:00.0".parse().unwrap(),
        interrupts: Arc::new(Interrupted::default()),
        memory: None,
        tap: None,
    };
    match build(model, &properties, slot) {
        Ok(_) => String::new(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn every_model_is_built_without_properties_and_says_its_name() {
    for model in models() {
        let machine = common::Machine::new(model.name, &Properties::new(), 4096);
        assert_eq!(machine.device.model(), model.name);
        assert_eq!(refusal(model.name, &[]), "");
    }
}

#[test]
fn unknown_names_are_errors_that_name_the_nearest() {
    assert_eq!(
        refusal("nmve", &[]),
        "unknown model \"nmve\"; did you mean \"nvme\"?"
    );
    assert_eq!(refusal("gpu-x9000", &[]), "unknown model \"gpu-x9000\"");
    assert_eq!(
        refusal("nvme", &[("sise", Value::Bytes(1))]),
        "unknown property \"sise\"; did you mean \"size\"?"
    );
}

#[test]
fn values_are_checked() {
    for (model, name, value, refused) in [
        (
            "nvme",
            "size",
            Value::Text("big".into()),
            "property \"size\" wants a size",
        ),
        ("nvme", "size", Value::Integer(1 << 20), ""),
        (
            "nvme",
            "size",
            Value::Bytes(1000),
            "property \"size\" is 1000: it is a multiple of 512, at least 512 and at most 2^53",
        ),
        (
            "nvme",
            "queues",
            Value::Integer(128),
            "property \"queues\" is 128: there are 1 to 127 pairs",
        ),
        ("nvme", "queues", Value::Integer(127), ""),
        (
            "nvme",
            "serial",
            Value::Text("é".into()),
            "property \"serial\" is é: it is 1 to 20 printable ASCII characters",
        ),
        (
            "nvme",
            "file",
            Value::Text("/nonexistent/disk".into()),
            "cannot use /nonexistent/disk: No such file or directory (os error 2)",
        ),
        (
            "ioat",
            "xfercap",
            Value::Integer(21),
            "property \"xfercap\" is 21: it is a power of two from 12 to 20",
        ),
        (
            "virtio-net",
            "queues",
            Value::Integer(9),
            "property \"queues\" is 9: there are 1 to 8 pairs",
        ),
        ("virtio-net", "queues", Value::Integer(8), ""),
        (
            "virtio-net",
            "mac",
            Value::Text("01:00:00:00:00:00".into()),
            "property \"mac\" is 01:00:00:00:00:00: it is six bytes as in 02:00:00:00:01:00, and no group's address",
        ),
        (
            "virtio-net",
            "mac",
            Value::Text("52:54:00:12:34:5g".into()),
            "property \"mac\" is 52:54:00:12:34:5g: it is six bytes as in 02:00:00:00:01:00, and no group's address",
        ),
        (
            "virtio-net",
            "mac",
            Value::Text("52:54:00:12:34:5f".into()),
            "",
        ),
        (
            "virtio-net",
            "socket",
            Value::Text("/nonexistent/peer".into()),
            "cannot use /nonexistent/peer: No such file or directory (os error 2)",
        ),
        (
            "edu",
            "dma-mask",
            Value::Bool(true),
            "property \"dma-mask\" wants a number",
        ),
    ] {
        assert_eq!(refusal(model, &[(name, value)]), refused);
    }
}
