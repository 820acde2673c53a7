//! The list of trace events is a document, and the document is the list.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn rust_files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            found.push(path);
        }
    }
}

/// The first text in quotes after each occurrence of `before`.
fn quoted_after<'t>(text: &'t str, before: &'t str) -> impl Iterator<Item = &'t str> {
    text.split(before).skip(1).filter_map(|rest| {
        let rest = rest.trim_start().strip_prefix('"')?;
        rest.split('"').next()
    })
}

/// The events that the sources emit.
fn emitted() -> BTreeSet<String> {
    let mut files = Vec::new();
    for entry in fs::read_dir(root().join("crates")).unwrap().flatten() {
        rust_files(&entry.path().join("src"), &mut files);
    }
    let mut names = BTreeSet::new();
    for file in files {
        let text = fs::read_to_string(file).unwrap();
        if !text.contains("tracing::") && !text.contains("told!(") {
            continue;
        }
        for marker in ["name: ", "told!("] {
            let found = quoted_after(&text, marker).filter(|name| name.contains('_'));
            names.extend(found.map(str::to_owned));
        }
    }
    names
}

fn listed(document: &str) -> BTreeSet<String> {
    document
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_event_is_in_the_document_and_every_line_of_it_is_an_event() {
    let document = fs::read_to_string(root().join("docs/trace.md")).unwrap();
    assert_eq!(listed(&document), emitted());
}

#[test]
fn help_prints_the_document() {
    let output = Command::new(env!("CARGO_BIN_EXE_iogate"))
        .args(["run", "--trace", "help"])
        .output()
        .unwrap();
    assert!(output.status.success());
    let document = fs::read_to_string(root().join("docs/trace.md")).unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), document);
}

#[test]
fn an_event_of_a_call_names_the_thread_that_made_it() {
    let ended = common::run(
        &["--trace", "ioctl_map_dma"],
        &["sh", "-c", "echo $$; exec iogate probe"],
    );
    let thread = ended.stdout.lines().next().unwrap();
    let lines: Vec<_> = ended
        .stderr
        .lines()
        .filter(|line| line.contains(" ioctl_map_dma "))
        .collect();
    assert!(!lines.is_empty());
    for line in lines {
        assert_eq!(line.split(' ').nth(1), Some(thread), "{line}");
    }
}
