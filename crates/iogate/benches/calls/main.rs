//! What a call costs through `iogate run`, against a bare seccomp notification
//! that is answered at once, in the same run: ratios, not times.
//!
//! The program under `iogate run` is this bench itself.

mod bare;
mod client;
mod maps;

use std::process::{Command, Stdio};
use std::time::Instant;

use bare::Answering;

/// Rounds of each measurement; the best one counts, the others waited for
/// something else.
const ROUNDS: usize = 7;
const IOGATE: &str = env!("CARGO_BIN_EXE_iogate");

fn main() {
    if let Ok(what) = std::env::var(client::ASKED) {
        client::main(&what);
        return;
    }
    let mut best = Figures::default();
    for _ in 0..ROUNDS {
        best.keep("bare notification", bare::round_trip(Answering::AtOnce));
        let identity = bare::round_trip(Answering::Identity);
        best.keep("floor of one call by a duplicate", identity);
        best.keep("floor of a pair", 2.0 * bare::round_trip(Answering::Memory));
        let mapped = run(1, "mapped", &["--device=edu,mmio=map"]);
        for (name, nanoseconds) in run(1, "calls", &[]).into_iter().chain(mapped) {
            best.keep(&name, nanoseconds);
        }
    }
    let bare = best.get("bare notification");
    println!("bare notification: {bare:.0} ns");
    for (name, most) in [
        ("one call", 1.5),
        ("MAP+UNMAP pair", 4.0),
        ("register read", 2.0),
        ("register read by a mapping", 4.0),
        ("register read by a mapping, SIGBUS handled", 4.0),
    ] {
        let figure = best.get(name);
        println!(
            "{name}: {figure:.0} ns, {:.2} x bare (aim: at most {most})",
            figure / bare
        );
    }

    // A receiver in a few lines of the same system calls, without an object
    // model: what no supervisor on this machine can go below. That of one call
    // is the bare notification; a duplicate is looked up each time.
    for name in [
        "one call by a duplicate",
        "floor of one call by a duplicate",
        "floor of a pair",
    ] {
        let figure = best.get(name);
        println!("{name}: {figure:.0} ns, {:.2} x bare", figure / bare);
    }
    start();
    maps::measure();

    let mut rates = Rates::default();
    for _ in 0..ROUNDS {
        rates.keep("one thread", rate(&run(1, "one-thread", &[])));
        rates.keep("two threads", rate(&run(1, "two-threads", &[])));
        rates.keep("two sessions", rate(&run(2, "one-thread", &[])));
    }
    let one = rates.get("one thread");
    println!("one thread: {one:.0} calls/s");
    println!(
        "two threads: {:.2} x one thread (aim: at least 1)",
        rates.get("two threads") / one
    );
    println!(
        "two sessions: {:.2} x one (aim: at least 1.8)",
        rates.get("two sessions") / one
    );
}

/// What a session adds to a program that does nothing.
fn start() {
    let mut best = [f64::INFINITY; 2];
    for _ in 0..10 {
        let programs = [("true", &[][..]), (IOGATE, &["run", "--", "true"][..])];
        for (best, (program, arguments)) in best.iter_mut().zip(programs) {
            let begun = Instant::now();
            let status = Command::new(program).args(arguments).status();
            assert!(status.is_ok_and(|status| status.success()), "{program}");
            *best = best.min(begun.elapsed().as_secs_f64() * 1e3);
        }
    }
    let [bare, session] = best;
    println!(
        "iogate run -- true: {:.1} ms more than true (aim: at most 15)",
        session - bare
    );
}

/// Runs `sessions` sessions with these options side by side and collects what
/// their clients print: lines of "name<TAB>number".
fn run(sessions: usize, what: &str, options: &[&str]) -> Vec<(String, f64)> {
    let myself = std::env::current_exe().expect("a bench has a path");
    let started: Vec<_> = (0..sessions)
        .map(|_| {
            Command::new(IOGATE)
                .arg("run")
                .args(options)
                .arg("--")
                .arg(&myself)
                .env(client::ASKED, what)
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .spawn()
                .expect("iogate starts")
        })
        .collect();
    let mut lines = Vec::new();
    for child in started {
        let output = child.wait_with_output().expect("iogate ends");
        assert!(
            output.status.success(),
            "iogate run ended with {}",
            output.status
        );
        let text = String::from_utf8(output.stdout).expect("figures are text");
        lines.extend(text.lines().filter_map(|line| {
            let (name, number) = line.split_once('\t')?;
            Some((name.to_owned(), number.parse().ok()?))
        }));
    }
    lines
}

fn rate(lines: &[(String, f64)]) -> f64 {
    lines.iter().map(|(_, rate)| rate).sum()
}

/// The smallest of each figure.
#[derive(Default)]
struct Figures(Vec<(String, f64)>);

impl Figures {
    fn keep(&mut self, name: &str, figure: f64) {
        match self.0.iter_mut().find(|(n, _)| n == name) {
            Some((_, best)) => *best = best.min(figure),
            None => self.0.push((name.to_owned(), figure)),
        }
    }

    fn get(&self, name: &str) -> f64 {
        self.0
            .iter()
            .find_map(|(n, figure)| (n == name).then_some(*figure))
            .unwrap_or(f64::NAN)
    }
}

/// The largest of each rate.
#[derive(Default)]
struct Rates(Figures);

impl Rates {
    fn keep(&mut self, name: &str, rate: f64) {
        self.0.keep(name, -rate);
    }

    fn get(&self, name: &str) -> f64 {
        -self.0.get(name)
    }
}
