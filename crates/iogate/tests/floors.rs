//! The floors of ARCHITECTURE.md hold: a crate depends only on lower ones.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Crate and floor, from rows such as "| 3 | `space` | ...".
fn floors() -> BTreeMap<String, u32> {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    text.lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| ")?.split(" | ");
            let floor = cells.next()?.parse().ok()?;
            let name = cells.next()?.trim_matches('`');
            Some((name.to_owned(), floor))
        })
        .collect()
}

/// The crates of ours that a crate is built with.
fn dependencies(name: &str) -> Vec<String> {
    let path = root().join("crates").join(name).join("Cargo.toml");
    let text = fs::read_to_string(path).unwrap();
    let built = text.split("[dev-dependencies]").next().unwrap();
    let ours = built
        .lines()
        .filter_map(|line| line.strip_prefix("iogate-"));
    ours.filter_map(|line| line.split(['.', ' ']).next())
        .map(str::to_owned)
        .collect()
}

#[test]
fn a_crate_depends_only_on_lower_floors() {
    let floors = floors();
    assert!(floors.len() > 10);
    for (name, floor) in &floors {
        for other in dependencies(name) {
            let below = floors.get(&other);
            assert!(
                below.is_some_and(|below| below < floor),
                "{name} on floor {floor} depends on {other} on {below:?}"
            );
        }
    }
}
