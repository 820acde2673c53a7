//! The list of cases, each as this user and, for root, as an ordinary one.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use crate::cases::CLIENTS;

/// How a case is run.
struct Place {
    name: &'static str,
    exe: PathBuf,
    /// The user to become.
    user: Option<u32>,
}

/// What a session came to.
struct Done {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Place {
    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(&self.exe);
        command.args(words).stdin(Stdio::null()).current_dir("/");
        if let Some(user) = self.user {
            command.gid(user).uid(user);
        }
        command
    }

    fn spawn(&self, words: &[&str]) -> Running {
        let mut command = self.command(words);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Running(command.spawn().unwrap())
    }

    fn run(&self, words: &[&str]) -> Done {
        finish(self.spawn(words))
    }

    fn client(&self, name: &str) -> Done {
        let exe = self.exe.to_str().unwrap();
        self.run(&["run", exe, "client", name])
    }
}

/// A session that is ended with its case.
struct Running(Child);

impl Running {
    fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits for a session with a limit, and collects what it said.
fn finish(mut running: Running) -> Done {
    let child = &mut running.0;
    fn collect(pipe: impl Read + Send + 'static) -> std::thread::JoinHandle<String> {
        let mut pipe = pipe;
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = pipe.read_to_end(&mut bytes);
            String::from_utf8_lossy(&bytes).into_owned()
        })
    }
    let out = collect(child.stdout.take().unwrap());
    let err = collect(child.stderr.take().unwrap());
    let start = Instant::now();
    let code = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status.code();
        }
        if start.elapsed() > Duration::from_secs(60) {
            running.kill();
            break None;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    Done {
        code,
        out: out.join().unwrap(),
        err: err.join().unwrap(),
    }
}

fn expect(done: &Done, code: i32) -> Result<(), String> {
    if done.code != Some(code) {
        return Err(format!(
            "ended with {:?}, not {code}\n{}",
            done.code, done.err
        ));
    }
    if !done.out.is_empty() {
        return Err(format!("something on stdout: {}", done.out));
    }
    Ok(())
}

fn expect_text(done: &Done, text: &str) -> Result<(), String> {
    match done.err.contains(text) {
        true => Ok(()),
        false => Err(format!("no {text:?} in:\n{}", done.err)),
    }
}

type Case = fn(&Place) -> Result<(), String>;

/// Cases that look at a session from outside.
const OUTSIDE: &[(&str, Case)] = &[
    ("the program's status is the session's", status),
    ("what cannot be executed is told apart", not_executed),
    (
        "those whom a program leaves are named and waited for",
        stragglers,
    ),
    ("a signal to the supervisor reaches the program", signal),
    (
        "the death of the supervisor ends all processes",
        supervisor_killed,
    ),
    (
        "the death of the guardian ends all processes",
        guardian_killed,
    ),
    ("nothing is left in the machine's own dev", nothing_left),
    ("the doctor finds what a run finds", doctor),
    (
        "a client that dies in the middle of a transfer harms nobody",
        killed_client,
    ),
];

fn status(place: &Place) -> Result<(), String> {
    expect(&place.run(&["run", "sh", "-c", "exit 7"]), 7)?;
    expect(&place.run(&["run", "sh", "-c", "kill -9 $$"]), 209)
}

fn not_executed(place: &Place) -> Result<(), String> {
    expect(&place.run(&["run", "/does/not/exist"]), 127)?;
    expect(&place.run(&["run", "does-not-exist"]), 127)?;
    expect(&place.run(&["run", "/etc/passwd"]), 126)
}

fn stragglers(place: &Place) -> Result<(), String> {
    let start = Instant::now();
    let done = place.run(&["run", "sh", "-c", "sleep 1 & exit 3"]);
    expect(&done, 3)?;
    expect_text(&done, "(sleep)")?;
    match start.elapsed() >= Duration::from_secs(1) {
        true => Ok(()),
        false => Err("it was not waited for".to_owned()),
    }
}

/// The processes that have `word` in their command line, by number.
fn processes(word: &str) -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| {
            let process = entry.file_name().to_str()?.parse().ok()?;
            let line = std::fs::read(entry.path().join("cmdline")).ok()?;
            let mut words = line.split(|byte| *byte == 0);
            words
                .any(|found| found == word.as_bytes())
                .then_some(process)
        })
        .collect()
}

fn eventually(what: &str, mut is_so: impl FnMut() -> bool) -> Result<(), String> {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(10) {
        if is_so() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Err(format!("not so: {what}"))
}

fn kill(process: i32, signal: i32) {
    // SAFETY: plain numbers.
    unsafe { libc::kill(process, signal) };
}

fn signal(place: &Place) -> Result<(), String> {
    let word = format!("31.{}", std::process::id());
    let child = place.spawn(&["run", "sleep", &word]);
    eventually("it sleeps", || {
        processes(&word)
            .iter()
            .any(|process| is_named(*process, "sleep"))
    })?;
    kill(child.0.id().cast_signed(), libc::SIGTERM);
    expect(&finish(child), 200 + libc::SIGTERM)
}

fn is_named(process: i32, name: &str) -> bool {
    let comm = std::fs::read_to_string(format!("/proc/{process}/comm"));
    comm.is_ok_and(|comm| comm.trim() == name)
}

fn supervisor_killed(place: &Place) -> Result<(), String> {
    let word = format!("32.{}", std::process::id());
    let script = format!("sleep {word} & sleep {word}");
    let mut child = place.spawn(&["run", "sh", "-c", &script]);
    eventually("it sleeps", || processes(&word).len() == 2)?;
    child.kill();
    eventually("all are gone", || processes(&word).is_empty())
}

fn guardian_killed(place: &Place) -> Result<(), String> {
    let word = format!("33.{}", std::process::id());
    let script = format!("sleep {word} & sleep {word}");
    let child = place.spawn(&["run", "sh", "-c", &script]);
    eventually("it sleeps", || processes(&word).len() == 2)?;
    let supervisor = child.0.id();
    let children = format!("/proc/{supervisor}/task/{supervisor}/children");
    let children = std::fs::read_to_string(children).map_err(|error| error.to_string())?;
    kill(children.trim().parse().unwrap(), libc::SIGKILL);
    expect(&finish(child), 125)?;
    eventually("all are gone", || processes(&word).is_empty())
}

fn nothing_left(place: &Place) -> Result<(), String> {
    let mounts = || std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let before = mounts();
    expect(&place.run(&["run", "true"]), 0)?;
    if mounts() != before || Path::new("/dev/iogate").exists() {
        return Err("the machine's own mounts changed".to_owned());
    }
    Ok(())
}

fn doctor(place: &Place) -> Result<(), String> {
    let done = place.run(&["doctor"]);
    match done.out.contains("Err") {
        true => Err(done.out),
        false => Ok(()),
    }
}

fn killed_client(place: &Place) -> Result<(), String> {
    let exe = place.exe.to_str().unwrap();
    let name = "a device reads and writes private memory";
    let script = format!(
        "for i in 1 2 3 4 5 6 7 8; do {exe} client '{name}' & p=$!; sleep 0.00$i; \
         kill -9 $p; wait $p; done; {exe} client '{name}'"
    );
    expect(&place.run(&["run", "sh", "-c", &script]), 0)
}

/// Cases whose sessions tell of faults: how many, after which word.
fn check_client(name: &str, done: &Done) -> Result<(), String> {
    let faults = done.err.matches("FAULT").count();
    let expected = match name {
        "private memory is dead once unmapped" => 1,
        "unmapping by other calls is noticed" => 3,
        _ => 0,
    };
    match faults == expected {
        true => Ok(()),
        false => Err(format!("{faults} faults, not {expected}:\n{}", done.err)),
    }
}

pub fn run_all(filter: &[&str]) -> ExitCode {
    let exe = std::env::current_exe().unwrap();
    let mut places = vec![Place {
        name: "as this user",
        exe: exe.clone(),
        user: None,
    }];
    // SAFETY: a plain call.
    let is_root = unsafe { libc::getuid() } == 0;
    let copy = std::env::temp_dir().join(format!("iogate-session-{}", std::process::id()));
    if is_root {
        std::fs::copy(&exe, &copy).unwrap();
        places.push(Place {
            name: "as an ordinary user",
            exe: copy.clone(),
            user: Some(1000),
        });
    }
    let wanted = |name: &str| {
        let words = filter.iter().filter(|word| !word.starts_with("--"));
        let mut words = words.peekable();
        words.peek().is_none() || words.any(|word| name.contains(word))
    };
    let mut failed = 0;
    for place in &places {
        let mut report = |name: &str, result: Result<(), String>| match result {
            Ok(()) => println!("ok      {name}, {}", place.name),
            Err(error) => {
                failed += 1;
                println!("FAILED  {name}, {}: {error}", place.name);
            }
        };
        for (name, _) in CLIENTS.iter().filter(|(name, _)| wanted(name)) {
            let done = place.client(name);
            for line in done.err.lines().filter(|line| line.starts_with("NOT RUN")) {
                println!("{line} ({name}, {})", place.name);
            }
            report(
                name,
                expect(&done, 0).and_then(|()| check_client(name, &done)),
            );
        }
        for (name, case) in OUTSIDE.iter().filter(|(name, _)| wanted(name)) {
            report(name, case(place));
        }
    }
    let _ = std::fs::remove_file(copy);
    println!("{failed} failed");
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
