//! A thread that works when somebody says so.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::Thread;

/// How the thread is told. Saying so twice before it looks is saying so once.
#[derive(Default)]
pub(crate) struct Waker {
    pending: AtomicBool,
    stopped: AtomicBool,
    thread: OnceLock<Thread>,
}

impl Waker {
    /// There is something to do.
    pub(crate) fn wake(&self) {
        if !self.pending.swap(true, Ordering::SeqCst)
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
    }

    /// The thread is to end.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        self.wake();
    }

    fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::SeqCst)
    }
}

/// Starts the thread called `name`: it runs `quantum` as long as that says that
/// there is more to do.
pub(crate) fn start(
    name: &str,
    waker: &Arc<Waker>,
    mut quantum: impl FnMut() -> bool + Send + 'static,
) -> io::Result<()> {
    let of_thread = Arc::clone(waker);
    let body = move || {
        while !of_thread.is_stopped() {
            if !of_thread.pending.swap(false, Ordering::SeqCst) {
                std::thread::park();
                continue;
            }
            while quantum() && !of_thread.is_stopped() {}
        }
    };
    // A thread's name has at most 15 bytes, cut by the kernel.
    let thread = std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)?;
    let _ = waker.thread.set(thread.thread().clone());
    // What was said before there was a thread to tell.
    thread.thread().unpark();
    Ok(())
}
