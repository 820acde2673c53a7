//! What a person and a program read after a session.

use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use iogate_checker::{Checker, MAX_CAUSES, MAX_PRINTED, Outside};
use iogate_dma::{Access, Fault, FaultReason, FaultSink, Iova, Rights, Source, Span};
use iogate_host::{Actor, Observer, SpaceId, Via};

const SPACE: SpaceId = SpaceId(1);

struct World;

impl Outside for World {
    fn model(&self, _: Source) -> Option<String> {
        Some("nvme".to_owned())
    }
    fn thread_name(&self, actor: Actor) -> Option<String> {
        (actor.thread == 4711).then(|| "worker".to_owned())
    }
}

#[derive(Clone, Default)]
struct Paper(Arc<Mutex<Vec<u8>>>);

impl Write for Paper {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Paper {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

fn checker() -> (Checker, Paper) {
    let paper = Paper::default();
    let checker = Checker::new(Box::new(World), Box::new(paper.clone()));
    checker.attached(source(), Some(SPACE));
    (checker, paper)
}

fn source() -> Source {
    "0000:01:00.0".parse().unwrap()
}

fn span(first: u64, length: u64) -> Span {
    Span::with_length(Iova(first), length).unwrap()
}

fn by() -> Option<Actor> {
    Some(Actor {
        process: 4700,
        thread: 4711,
    })
}

fn fault(iova: u64, access: Access, reason: FaultReason) -> Fault {
    Fault {
        source_id: source(),
        span: span(iova, 4096),
        access,
        reason,
        walk: None,
        recoverable: false,
    }
}

#[test]
fn a_dma_after_unmap_tells_who_mapped_and_who_unmapped() {
    let (checker, paper) = checker();
    let area = span(0x20_0000, 0x20_0000);
    checker.mapped(SPACE, area, Rights::READ_WRITE, Via::MapDma, by());
    checker.unmapped(SPACE, area, Via::UnmapDma, by());
    for _ in 0..3 {
        checker.fault(&fault(0x20_0000, Access::Write, FaultReason::NotMapped));
        checker.answered(source(), "answered NVMe status 0x04, sq 1 cid 17");
    }
    let report = checker.finish();
    let text = paper.text();
    assert!(
        text.starts_with(
            "iogate: DMA fault 1: nvme 0000:01:00.0 wrote 4096 bytes at IOVA 0x200000: not mapped\n"
        ),
        "{text}"
    );
    assert!(
        text.contains("  mapped    0x200000-0x3fffff rw, "),
        "{text}"
    );
    assert!(
        text.contains(" ago, MAP_DMA, thread 4711 \"worker\"\n"),
        "{text}"
    );
    assert!(text.contains(" before, UNMAP_DMA, thread 4711"), "{text}");
    assert!(
        text.contains("  device    answered NVMe status 0x04, sq 1 cid 17\n"),
        "{text}"
    );
    assert!(
        text.contains("iogate: DMA fault 1 (3 times): nvme"),
        "{text}"
    );
    let json: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap();
    assert_eq!(json["schema"], 1);
    assert_eq!(json["faults"]["accesses"], 3);
    assert_eq!(json["faults"]["causes"][0]["first"], "0x200000");
    assert_eq!(json["faults"]["causes"][0]["history"], "unmapped");
    assert_eq!(json["leaks"]["mappings"], 0);
}

#[test]
fn one_window_of_two_mebibytes_is_one_cause() {
    let (checker, _) = checker();
    for page in 0..1024 {
        checker.fault(&fault(page * 4096, Access::Read, FaultReason::NotMapped));
    }
    let json: serde_json::Value = serde_json::from_str(&checker.finish().to_json()).unwrap();
    assert_eq!(json["faults"]["causes"].as_array().unwrap().len(), 2);
    assert_eq!(json["faults"]["causes"][0]["times"], 512);
}

#[test]
fn causes_beyond_the_bounds_are_counted_only() {
    let (checker, paper) = checker();
    let most = u64::try_from(MAX_CAUSES).unwrap();
    for window in 0..most + 5 {
        checker.fault(&fault(window << 21, Access::Read, FaultReason::NotMapped));
    }
    let json: serde_json::Value = serde_json::from_str(&checker.finish().to_json()).unwrap();
    assert_eq!(
        json["faults"]["causes"].as_array().unwrap().len(),
        MAX_CAUSES
    );
    assert_eq!(json["faults"]["not_kept"], 5);
    assert_eq!(
        paper.text().matches("iogate: DMA fault ").count(),
        MAX_PRINTED
    );
}

#[test]
fn what_was_never_unmapped_is_a_leak() {
    let (checker, paper) = checker();
    checker.mapped(SPACE, span(0, 4096), Rights::READ, Via::MapDma, by());
    checker.unmapped(SPACE, span(0, 4096), Via::Release, None);
    assert_eq!(checker.leaks(), 1);
    checker.finish();
    assert_eq!(paper.text(), "iogate: 1 mapping was never unmapped\n");
}

#[test]
fn memory_taken_away_is_explained() {
    let (checker, paper) = checker();
    checker.mapped(
        SPACE,
        span(0x1000, 0x3000),
        Rights::READ_WRITE,
        Via::MapDma,
        by(),
    );
    checker.revoked(SPACE, span(0x2000, 0x1000), by());
    checker.fault(&fault(0x2000, Access::Read, FaultReason::Revoked));
    checker.finish();
    assert!(
        paper.text().contains("  memory    taken away "),
        "{}",
        paper.text()
    );
}

#[test]
fn memory_that_went_with_its_process_is_explained() {
    let (checker, paper) = checker();
    checker.mapped(
        SPACE,
        span(0x1000, 0x1000),
        Rights::READ_WRITE,
        Via::MapDma,
        by(),
    );
    checker.fault(&fault(0x1000, Access::Read, FaultReason::Revoked));
    checker.finish();
    let line = "  memory    gone: its process ended, or its file became shorter\n";
    assert!(paper.text().contains(line), "{}", paper.text());
}

#[test]
fn a_report_is_renamed_into_place() {
    let (checker, _) = checker();
    let folder = std::env::temp_dir().join(format!("iogate-report-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let written = checker
        .finish()
        .write(&folder.join("r-%p.json"), 77)
        .unwrap();
    assert_eq!(written, folder.join("r-77.json"));
    let names: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .flatten()
        .map(|e| e.file_name())
        .collect();
    assert_eq!(names, ["r-77.json"]);
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn a_link_to_a_report_is_followed_and_stays() {
    let (checker, _) = checker();
    let folder = std::env::temp_dir().join(format!("iogate-link-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (file, link) = (folder.join("file"), folder.join("link"));
    std::fs::write(&file, "old").unwrap();
    std::os::unix::fs::symlink(&file, &link).unwrap();
    checker.finish().write(&link, 1).unwrap();
    assert!(link.symlink_metadata().unwrap().is_symlink());
    assert!(std::fs::read_to_string(&file).unwrap().contains("schema"));
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn what_was_injected_is_no_fault_of_the_program() {
    let (checker, paper) = checker();
    checker.fault(&fault(0x1000, Access::Read, FaultReason::Injected));
    checker.answered(source(), "answered NVMe status 0x04, sq 1 cid 17");
    assert_eq!(checker.faults(), 0);
    checker.finish();
    assert_eq!(paper.text(), "");
}

#[test]
fn a_report_named_sarif_has_a_rule_for_each_reason_and_a_result_for_each_finding() {
    let (checker, _) = checker();
    let area = span(0x20_0000, 0x1000);
    checker.mapped(SPACE, area, Rights::READ, Via::MapDma, by());
    let reasons = [
        FaultReason::NotMapped,
        FaultReason::Permission,
        FaultReason::Revoked,
        FaultReason::Reserved,
        FaultReason::Blocked,
        FaultReason::Physical,
        FaultReason::NotMaster,
    ];
    for reason in reasons {
        checker.fault(&fault(0x20_0000, Access::Write, reason));
    }
    checker.unmapped(SPACE, area, Via::Release, None);
    let folder = std::env::temp_dir().join(format!("iogate-sarif-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let mut report = checker.finish();
    report.set("status", serde_json::json!({ "exited": 3 }));
    let written = report.write(&folder.join("r.sarif"), 1).unwrap();
    let text = std::fs::read_to_string(written).unwrap();
    std::fs::remove_dir_all(&folder).unwrap();

    let sarif: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(sarif["version"], "2.1.0");
    let run = &sarif["runs"][0];
    assert_eq!(run["tool"]["driver"]["name"], "iogate");
    assert_eq!(run["invocations"][0]["exitCode"], 3);
    let rules = run["tool"]["driver"]["rules"].as_array().unwrap();
    let results = run["results"].as_array().unwrap();
    assert_eq!(results.len(), reasons.len() + 1);
    for (index, result) in results.iter().enumerate() {
        assert_eq!(result["ruleIndex"], index);
        assert_eq!(result["ruleId"], rules[index]["id"]);
        assert!(!result["message"]["text"].as_str().unwrap().is_empty());
        assert!(result["locations"][0]["logicalLocations"].is_array());
    }
    assert_eq!(results[1]["level"], "error");
    assert_eq!(results[7]["level"], "warning");
    assert_eq!(
        results[1]["message"]["text"],
        "nvme 0000:01:00.0 wrote 4096 bytes at IOVA 0x200000: against the mapping's permission; \
         the mapping is 0x200000-0x200fff ro"
    );
}
