//! The gate's own tests, and threads that meet at it.

#[path = "../../../crates/dma/src/gate.rs"]
#[allow(dead_code, unreachable_pub, reason = "only what its tests use")]
mod gate;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use iogate_dma::Gate;

/// Miri also explores that a relaxed load returns an old value: only the gate
/// keeps a worker that still sees the mapping from seeing its memory spoiled.
#[test]
fn memory_is_let_go_only_when_no_worker_uses_it() {
    const ROUNDS: usize = 8;
    let gate = Arc::new(Gate::new());
    let mapped: Vec<_> = (0..ROUNDS).map(|_| AtomicBool::new(true)).collect();
    let memory: Vec<_> = (0..ROUNDS).map(|_| AtomicU64::new(1)).collect();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let mut worker = gate.join();
            let (mapped, memory) = (&mapped, &memory);
            scope.spawn(move || {
                for (mapped, memory) in mapped.iter().zip(memory) {
                    let guard = worker.enter();
                    if mapped.load(Ordering::Relaxed) {
                        assert_eq!(memory.load(Ordering::Relaxed), 1);
                    }
                    drop(guard);
                }
            });
        }
        for (mapped, memory) in mapped.iter().zip(&memory) {
            mapped.store(false, Ordering::Release);
            gate.grace().wait();
            memory.store(2, Ordering::Relaxed);
        }
    });
}
