//! Runs the chosen cases one after another and says how each ended.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crate::cases::{self, Case};
use crate::options::Options;
use crate::process;
use crate::progress::Progress;
use crate::setup::Bench;
use crate::site::Site;
use crate::verdict::Stop;

/// How many lines of a failure's log are shown.
const TAIL: usize = 40;

/// How many of the slowest steps are named at the end.
const SLOWEST: usize = 8;

#[derive(Default)]
struct Totals {
    passed: u64,
    failed: u64,
    not_run: u64,
    reruns: Vec<String>,
    /// Logs that were shown: one failure of a set-up step fails many cases.
    shown: Vec<PathBuf>,
}

/// `cargo xtask test`.
pub(crate) fn main(options: &Options) -> ExitCode {
    let chosen: Vec<Case> = cases::all()
        .into_iter()
        .filter(|case| options.selects(case.tier, &case.name))
        .collect();
    if options.list {
        for case in &chosen {
            println!("{:8} {}", case.tier, case.name);
        }
        return ExitCode::SUCCESS;
    }
    if chosen.is_empty() {
        eprintln!("xtask: no case has that name; cargo xtask test --list prints all");
        return ExitCode::from(2);
    }
    let site = match Site::find() {
        Ok(site) => site,
        Err(error) => {
            eprintln!("xtask: {error}");
            return ExitCode::from(2);
        }
    };
    process::take_charge();
    let bench = Bench::new(site, Progress::start());
    let mut totals = Totals::default();
    let mut done = 0;
    for case in &chosen {
        run(&bench, case, &mut totals);
        if process::interrupted() {
            break;
        }
        done += 1;
    }
    summarize(&bench, options, &totals, chosen.len() - done)
}

fn run(bench: &Bench, case: &Case, totals: &mut Totals) {
    let log = bench.site.log(&case.name);
    // The log of an earlier run; there may be none.
    let _ = std::fs::remove_file(&log);
    bench.progress.begin(&case.name);
    let first = bench.took.borrow().len();
    let result = (case.run)(bench, &log);
    let seconds = bench.progress.end().as_secs_f32();
    bench.note(&case.name, first, seconds);
    let counted = bench.counted.take();
    let line = |word: &str| format!("{:8} {:<46} {seconds:6.1} s  {word}", case.tier, case.name);
    match result {
        Ok(()) => {
            totals.passed += counted.map_or(1, |(passed, _)| passed);
            bench.progress.print(&line("ok"));
        }
        Err(Stop::Failed {
            message,
            log: other,
        }) => {
            let (passed, failed) = counted.unwrap_or_default();
            totals.passed += passed;
            totals.failed += failed.max(1);
            let log = other.unwrap_or(log);
            if totals.shown.contains(&log) {
                bench.progress.print(&line(&format!("FAILED: {message}")));
                return;
            }
            let rerun = format!("cargo xtask test --tier {} {}", case.tier, case.name);
            bench.progress.print(&format!(
                "{}\n  {message}\n{}  rerun: {rerun}",
                line("FAILED"),
                tail(&log)
            ));
            totals.shown.push(log);
            totals.reruns.push(rerun);
        }
        Err(stop @ Stop::NotRun { .. }) => {
            totals.not_run += 1;
            bench.progress.print(&line(&format!("NOT RUN: {stop}")));
        }
        Err(Stop::Interrupted) => bench.progress.print(&line("interrupted")),
    }
}

/// The last lines of a log, and where the whole of it is.
fn tail(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let mut shown = format!("  log: {}\n", log.display());
    for line in &lines[lines.len().saturating_sub(TAIL)..] {
        shown += "  | ";
        shown += line;
        shown.push('\n');
    }
    shown
}

/// Where the time went.
fn slowest(took: &[(String, f32)]) -> String {
    let whole: f32 = took.iter().map(|(_, seconds)| seconds).sum();
    let mut took: Vec<_> = took.iter().collect();
    took.sort_by(|a, b| b.1.total_cmp(&a.1));
    let most: Vec<_> = took
        .iter()
        .take(SLOWEST)
        .map(|(name, seconds)| format!("{name} {seconds:.0} s"))
        .collect();
    format!("{whole:.0} s, most of it: {}", most.join(", "))
}

fn summarize(bench: &Bench, options: &Options, totals: &Totals, left: usize) -> ExitCode {
    let print = |text: &str| bench.progress.print(text);
    print("");
    if !totals.reruns.is_empty() {
        print("failed; to run one again:");
        for rerun in &totals.reruns {
            print(&format!("  {rerun}"));
        }
    }
    if left > 0 {
        print(&format!("interrupted with {left} cases left"));
    }
    let strict = options.strict && totals.not_run > 0;
    if strict {
        print("--strict: what was not run counts as a failure");
    }
    print(&slowest(&bench.took.borrow()));
    print(&format!(
        "logs: {}",
        bench.site.xtask.join("logs").display()
    ));
    let mut last = format!("{} passed, {} failed", totals.passed, totals.failed);
    if totals.not_run > 0 {
        last += &format!(", {} skipped", totals.not_run);
    }
    print(&last);
    if left > 0 {
        ExitCode::from(130)
    } else if totals.failed > 0 || strict {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}
