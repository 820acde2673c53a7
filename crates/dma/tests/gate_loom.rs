//! Every interleaving of a worker and of one who takes a mapping away, by the
//! loom model checker: `RUSTFLAGS="--cfg loom" cargo test -p iogate-dma --test gate_loom`.
#![cfg(loom)]

use iogate_dma::Gate;
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;

/// A slot of a table, and the memory that it leads to.
struct Mapping {
    present: AtomicBool,
    memory: UnsafeCell<u64>,
}

fn mapping() -> Arc<Mapping> {
    Arc::new(Mapping {
        present: AtomicBool::new(true),
        memory: UnsafeCell::new(1),
    })
}

/// What a worker does: translate, and use the result under the guard.
fn use_once(gate: &Arc<Gate>, mapping: &Mapping) {
    let mut worker = Gate::admit_for_loom(gate);
    let guard = worker.enter();
    if mapping.present.load(Ordering::Acquire) {
        // loom fails the test if this read may meet the write below.
        mapping
            .memory
            .with(|memory| assert_eq!(unsafe { *memory }, 1));
    }
    drop(guard);
}

#[test]
fn memory_is_let_go_only_when_no_worker_uses_it() {
    loom::model(|| {
        let gate = Arc::new(Gate::new());
        let mapping = mapping();
        let worker = {
            let (gate, mapping) = (gate.clone(), mapping.clone());
            thread::spawn(move || use_once(&gate, &mapping))
        };
        mapping.present.store(false, Ordering::Release);
        gate.grace().wait();
        mapping.memory.with_mut(|memory| unsafe { *memory = 2 });
        worker.join().unwrap();
    });
}
