//! One live line on a terminal, a line now and then in a pipe: a person always sees what is running.

use std::io::{IsTerminal, Write, stdout};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often a pipe is told that a step is still running.
const PIPE_INTERVAL: Duration = Duration::from_secs(30);
/// How often a terminal's live line is redrawn.
const TERMINAL_INTERVAL: Duration = Duration::from_millis(250);

#[derive(Default)]
struct Running {
    /// The steps under way, the innermost last.
    steps: Vec<(String, Instant)>,
    ended: bool,
}

struct Shared {
    running: Mutex<Running>,
    changed: Condvar,
    terminal: bool,
}

/// Says what is running. Dropped at the end of the run.
pub(crate) struct Progress {
    shared: Arc<Shared>,
    ticker: Option<std::thread::JoinHandle<()>>,
}

impl Progress {
    /// Starts with nothing running.
    pub(crate) fn start() -> Self {
        let shared = Arc::new(Shared {
            running: Mutex::default(),
            changed: Condvar::new(),
            terminal: stdout().is_terminal(),
        });
        let theirs = Arc::clone(&shared);
        let ticker = std::thread::spawn(move || theirs.tick());
        Self {
            shared,
            ticker: Some(ticker),
        }
    }

    /// A step begins, perhaps inside another one.
    pub(crate) fn begin(&self, name: &str) {
        self.with(|running| running.steps.push((name.to_owned(), Instant::now())));
    }

    /// The innermost step ends. Returns how long it took.
    pub(crate) fn end(&self) -> Duration {
        self.with(|running| running.steps.pop())
            .map_or(Duration::ZERO, |(_, since)| since.elapsed())
    }

    /// Prints whole lines above the live line.
    pub(crate) fn print(&self, text: &str) {
        self.with(|_| {
            if self.shared.terminal {
                print!("\r\x1b[K");
            }
            println!("{text}");
        });
    }

    fn with<T>(&self, change: impl FnOnce(&mut Running) -> T) -> T {
        let mut running = self
            .shared
            .running
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut running);
        if self.shared.terminal {
            Shared::draw(&running);
        }
        drop(running);
        self.shared.changed.notify_all();
        result
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.with(|running| {
            running.ended = true;
            running.steps.clear();
        });
        if let Some(ticker) = self.ticker.take() {
            // A ticker that panicked has nothing left to say.
            let _ = ticker.join();
        }
    }
}

impl Shared {
    fn draw(running: &Running) {
        let line = running
            .steps
            .last()
            .map(|(name, since)| format!("  {name} {:.0} s", since.elapsed().as_secs_f32()));
        print!("\r\x1b[K{}", line.unwrap_or_default());
        // A closed standard output ends the run at the next println.
        let _ = stdout().flush();
    }

    fn tick(&self) {
        let interval = if self.terminal {
            TERMINAL_INTERVAL
        } else {
            Duration::from_secs(1)
        };
        let mut spoke = Instant::now();
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        while !running.ended {
            let (guard, _) = self
                .changed
                .wait_timeout(running, interval)
                .unwrap_or_else(PoisonError::into_inner);
            running = guard;
            if self.terminal {
                Self::draw(&running);
            } else if let Some((name, since)) = running.steps.last() {
                let quiet = spoke.elapsed().min(since.elapsed());
                if quiet >= PIPE_INTERVAL {
                    println!("  {name}: running for {} s", since.elapsed().as_secs());
                    spoke = Instant::now();
                }
            }
        }
    }
}
