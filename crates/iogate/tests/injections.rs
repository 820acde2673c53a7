//! `--inject`: its document is its parser, and what it does is what a program
//! and a report see.

mod common;

use std::collections::BTreeSet;

use common::{document, run};
use iogate_inject::Injection;
use serde_json::Value;

fn parse(text: &str) -> Result<Injection, String> {
    let devices = [("01:00.0", "edu"), ("02:00.0", "nvme")]
        .map(|(at, model)| (at.parse().unwrap(), model.to_owned()));
    Injection::new(&[text.to_owned()], 1, &devices).map_err(|error| error.to_string())
}

/// The lines of the blocks that are marked as `kind`.
fn blocks(text: &str, kind: &str) -> Vec<String> {
    let mut inside = false;
    let mut lines = Vec::new();
    for line in text.lines() {
        match line.strip_prefix("```") {
            Some(mark) => inside = mark == kind,
            None if inside => lines.push(line.to_owned()),
            None => {}
        }
    }
    lines
}

#[test]
fn help_prints_the_document() {
    let output = common::iogate(&["run", "--inject", "help"]);
    assert!(output.status.success());
    assert_eq!(
        String::from_utf8(output.stdout).unwrap(),
        document("inject.md")
    );
}

#[test]
fn every_example_of_the_document_is_a_rule_and_its_error_is_the_error() {
    let text = document("inject.md");
    let examples = blocks(&text, "inject");
    assert!(examples.len() > 5);
    for example in examples {
        parse(&example).unwrap_or_else(|error| panic!("{error}"));
    }
    let shown = parse("irq:drop,map:ENOMEMM@3").err().unwrap();
    assert!(text.contains(&shown), "{shown}");
}

#[test]
fn every_form_of_the_document_s_tables_is_read() {
    let text = document("inject.md");
    let forms = text.lines().filter_map(|line| line.strip_prefix("| `"));
    let forms: Vec<_> = forms.filter_map(|line| line.split('`').next()).collect();
    assert_eq!(forms.len(), 12);
    for form in forms {
        let rule = match form.strip_prefix('@') {
            Some(_) => format!("dma:fault{form}"),
            None => form.replace("ERRNO", "EIO").replace("CALL", "map_dma"),
        };
        parse(&rule).unwrap_or_else(|error| panic!("{error}"));
    }
}

#[test]
fn the_document_lists_exactly_the_errnos() {
    let text = document("inject.md");
    let list = text.split("ERRNO is one of ").nth(1).unwrap();
    let list = list.split('.').next().unwrap();
    let listed: BTreeSet<_> = list.split(',').map(str::trim).collect();
    let known: BTreeSet<_> = iogate_uapi::Errno::NAMED.iter().map(|e| e.name()).collect();
    assert_eq!(listed, known);
}

#[test]
fn every_call_that_a_trace_names_can_fail() {
    let text = document("trace.md");
    let names = text.lines().filter_map(|line| line.strip_prefix("| `"));
    for name in names.filter_map(|line| line.split('`').next()) {
        let is_call = name.starts_with("ioctl_") && name != "ioctl_unknown";
        if is_call || ["region_read", "region_write"].contains(&name) {
            parse(&format!("{name}:EIO")).unwrap_or_else(|error| {
                panic!("{error}\n(crates/uapi/src/calls.rs names the calls)")
            });
        }
    }
}

#[test]
fn a_wrong_rule_ends_before_the_program_starts() {
    let output = common::iogate(&["run", "--inject", "dma:fault@gpu", "--", "true"]);
    assert_eq!(output.status.code(), Some(125));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("--inject, column 11: "), "{text}");
}

#[test]
fn an_injected_errno_is_what_the_program_gets() {
    let ended = run(&["--inject", "map:ENOMEM@1"], &["iogate", "probe"]);
    assert_ne!(ended.status, 0);
    assert!(
        ended.stdout.contains("Cannot allocate memory"),
        "{}",
        ended.stdout
    );
    assert!(
        ended
            .stderr
            .contains("iogate: injected map:ENOMEM@1: once\n")
    );
    let injected = &ended.report["injected"];
    assert_eq!(injected["rules"][0]["times"], 1);
    assert_eq!(injected["events"][0]["what"], "ioctl_map_dma");
    assert_eq!(injected["seed"], 1);
}

#[test]
fn a_refused_access_is_seen_by_the_device_and_is_no_fault_of_the_program() {
    let ended = run(
        &["--inject", "dma:fault@edu@1", "--fail-on", "faults"],
        &["iogate", "probe"],
    );
    assert_eq!(ended.report["faults"]["accesses"], 0);
    let event = &ended.report["injected"]["events"][0];
    assert_eq!(event["device"], "0000:01:00.0");
    assert!(
        event["what"].as_str().unwrap().starts_with("DMA "),
        "{event}"
    );
    assert!(!ended.stderr.contains("DMA fault"), "{}", ended.stderr);
    assert_ne!(ended.status, 99);
}

#[test]
fn a_lost_interrupt_does_not_arrive() {
    let ended = run(
        &["--inject", "irq:drop@edu@1", "--trace", "i*_irq"],
        &["iogate", "probe"],
    );
    assert_ne!(ended.status, 0, "{}", ended.stdout);
    assert!(
        ended
            .stderr
            .contains(" inject_irq device=0000:01:00.0 vector=0 ")
    );
}

#[test]
fn a_vanished_device_reads_as_ones() {
    let ended = run(&["--inject", "device:vanish@nvme"], &["iogate", "probe"]);
    assert_ne!(ended.status, 0, "{}", ended.stdout);
    let events = ended.report["injected"]["events"].as_array().unwrap();
    assert_eq!(events.len(), 1);
    assert_eq!(events[0]["what"], "vanished");
}

#[test]
fn a_seed_decides_the_same_every_time() {
    let failures = |seed: &str| -> Vec<Value> {
        let options = ["--inject", "device_get_region_info:EIO@30%"];
        let ended = run(
            &[&options[..], &["--inject-seed", seed]].concat(),
            &["iogate", "probe"],
        );
        let events = ended.report["injected"]["events"].as_array().unwrap();
        events.iter().map(|event| event["device"].clone()).collect()
    };
    let first = failures("7");
    assert!(!first.is_empty());
    assert_eq!(first, failures("7"));
}

#[test]
fn a_rule_that_nothing_met_is_said() {
    let ended = run(&["--inject", "dma:fault@nvme@1000000"], &["true"]);
    assert_eq!(ended.status, 0);
    assert!(ended.stderr.contains("@1000000: never, nothing met it\n"));
}
