//! The table of rules in docs/iommufd.md names tests that exist.

use std::path::Path;

#[test]
fn every_rule_of_the_document_names_tests_that_exist() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = here.join("../../docs/iommufd.md");
    let document = std::fs::read_to_string(document).unwrap();
    let (_, rules) = document.split_once("## The kernel's rules").unwrap();
    let rules = rules.split("\n## ").next().unwrap();
    let mut sources = String::new();
    for entry in std::fs::read_dir(here.join("tests")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            sources += &std::fs::read_to_string(path).unwrap();
        }
    }
    let mut rows = 0;
    for row in rules.lines().filter(|line| line.starts_with("| ")) {
        let names: Vec<&str> = row.split('`').skip(1).step_by(2).collect();
        for name in &names {
            assert!(sources.contains(&format!("fn {name}()")), "{name}");
        }
        rows += usize::from(!names.is_empty());
    }
    assert_eq!(rows, 22);
}
