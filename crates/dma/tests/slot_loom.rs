//! Every interleaving of a reader and of writers of a slot, by the loom model
//! checker: `RUSTFLAGS="--cfg loom" cargo test -p iogate-dma --test slot_loom`.
#![cfg(loom)]

use iogate_dma::Slot;
use loom::sync::Arc;
use loom::thread;

#[test]
fn words_of_two_writers_are_never_read_as_one() {
    loom::model(|| {
        let slot = Arc::new(Slot::<2>::new());
        let writers = [1_u32, 2].map(|value| {
            let slot = slot.clone();
            thread::spawn(move || slot.write(value, [value.into(); 2]))
        });
        if let Some((half, [a, b])) = slot.read() {
            assert!(a == b && u64::from(half) == a, "{half} {a} {b}");
        }
        let wrote = writers.map(|writer| writer.join().unwrap());
        assert!(wrote.contains(&true));
        assert!(slot.read().is_some());
    });
}

#[test]
fn clearing_takes_what_was_looked_at_and_leaves_what_came_meanwhile() {
    loom::model(|| {
        let slot = Arc::new(Slot::<2>::new());
        assert!(slot.write(1, [1, 1]));
        let writer = {
            let slot = slot.clone();
            thread::spawn(move || slot.write(2, [2, 2]))
        };
        slot.clear_if(|words| {
            assert_eq!(words[0], words[1]);
            words[0] == 1
        });
        let wrote = writer.join().unwrap();
        let (_, words) = slot.read().unwrap();
        assert_eq!(words, if wrote { [2, 2] } else { [0, 0] });
    });
}
