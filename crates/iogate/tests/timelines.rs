//! `--timeline`: what a viewer reads.
#![allow(missing_docs)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

fn timeline(program: &[&str]) -> Vec<Value> {
    let file = common::scratch("timeline.json");
    let ended = common::run(&["--timeline", file.to_str().unwrap()], program);
    assert_eq!(ended.status, 0, "{}", ended.stderr);
    serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap()
}

fn named<'e>(events: &'e [Value], name: &str) -> Vec<&'e Value> {
    events
        .iter()
        .filter(|event| event["name"] == name)
        .collect()
}

/// What tracks of this kind are called, by process and thread.
fn names(events: &[Value], kind: &str) -> BTreeMap<(u64, u64), String> {
    let number = |event: &Value, key: &str| event[key].as_u64().unwrap();
    named(events, kind)
        .into_iter()
        .map(|event| {
            let name = event["args"]["name"].as_str().unwrap().to_owned();
            ((number(event, "pid"), number(event, "tid")), name)
        })
        .collect()
}

#[test]
fn calls_accesses_and_interrupts_stand_in_the_tracks_of_their_thread_and_device() {
    let events = timeline(&["iogate", "probe"]);
    for event in &events {
        for key in ["name", "ph", "pid", "tid"] {
            assert!(!event[key].is_null(), "{event}");
        }
        let time = event["ts"].as_f64();
        assert!(
            event["ph"] == "M" || time.is_some_and(|ts| ts >= 0.0),
            "{event}"
        );
    }
    let tracks = names(&events, "thread_name");
    let track = |event: &Value| {
        let at = (
            event["pid"].as_u64().unwrap(),
            event["tid"].as_u64().unwrap(),
        );
        tracks.get(&at).cloned().unwrap_or_default()
    };
    let maps = named(&events, "ioctl_map_dma");
    assert!(!maps.is_empty());
    for map in maps {
        assert_eq!((map["ph"].as_str(), &*track(map)), (Some("X"), "iogate"));
        assert!(map["dur"].as_f64().unwrap() > 0.0);
        assert!(map["args"]["iova"].is_string());
    }
    for name in ["dma_access", "irq_fire", "dma_work"] {
        let found = named(&events, name);
        assert!(
            found.iter().any(|event| track(event) == "0000:01:00.0"),
            "{name}"
        );
        assert!(
            found.iter().any(|event| track(event) == "0000:02:00.0"),
            "{name}"
        );
    }
    let processes = names(&events, "process_name");
    assert!(processes.values().any(|name| name == "devices"));
}

#[test]
fn every_mapping_that_begins_ends() {
    let events = timeline(&["iogate", "probe"]);
    let mut standing = Vec::new();
    let mut count = 0;
    for event in events.iter().filter(|event| event["cat"] == "mapping") {
        let key = (&event["id"], &event["name"]);
        match event["ph"].as_str() {
            Some("b") => {
                standing.push(key);
                count += 1;
            }
            Some("e") => {
                let at = standing.iter().position(|other| *other == key).unwrap();
                standing.remove(at);
            }
            _ => panic!("{event}"),
        }
    }
    assert!(count > 0 && standing.is_empty(), "{standing:?}");
}

#[test]
fn the_timeline_of_a_killed_session_lacks_its_last_bracket_only() {
    let file = common::scratch("killed.json");
    let mut child = Command::new(env!("CARGO_BIN_EXE_iogate"))
        .args([
            "run",
            "--timeline",
            file.to_str().unwrap(),
            "--",
            "sh",
            "-c",
        ])
        .arg("iogate probe; sleep 60")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    let has_ended = |text: &str| text.matches("\"file_close\"").count() > 4;
    while !has_ended(&fs::read_to_string(&file).unwrap_or_default()) {
        assert!(begun.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let text = fs::read_to_string(&file).unwrap();
    assert!(!text.trim_end().ends_with(']'));
    let events: Vec<Value> = serde_json::from_str(&format!("{text}]")).unwrap();
    assert!(events.len() > 50);
}

#[test]
fn an_access_is_told_of_only_where_somebody_wants_to_hear() {
    let ended = common::run(&["--trace", "dma_access"], &["iogate", "probe"]);
    assert!(
        ended
            .stderr
            .contains(" dma_access device=0000:01:00.0 access=read iova=0x")
    );
    let ended = common::run(&["--trace", "irq_*"], &["iogate", "probe"]);
    assert!(!ended.stderr.contains("dma_access"));
}
