//! The table of capabilities in docs/vtd.md names tests that exist.

use std::path::Path;

fn sources(directory: &Path, found: &mut String) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            *found += &std::fs::read_to_string(path).unwrap();
        }
    }
}

#[test]
fn every_capability_of_the_chapter_names_tests_that_exist() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let chapter = std::fs::read_to_string(crates.join("../docs/vtd.md")).unwrap();
    let mut tests = String::new();
    for home in ["vtd/src", "vtd/tests", "shadow/tests", "vm-memory/tests"] {
        sources(&crates.join(home), &mut tests);
    }
    let rows = chapter.lines().filter(|line| line.starts_with("| "));
    let mut proved = 0;
    for row in rows.skip(1) {
        let proof = row.trim_end_matches(" |").rsplit(" | ").next().unwrap();
        let names: Vec<&str> = proof.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "{row}");
        for name in names {
            assert!(tests.contains(&format!("fn {name}(")), "{name}");
        }
        proved += 1;
    }
    assert_eq!(proved, 20);
}
