//! Requests through structures of every kind: the unit does what the naive model does, and a guest reads the same faults.

mod guest;
mod naive;
#[path = "bodies/structures.rs"]
mod structures;

use naive::choices::bytes_of_seed;
use proptest::prelude::*;

#[test]
fn the_unit_answers_ten_thousands_of_requests_as_the_model_does() {
    let mut all = [0; 3];
    for seed in 0..600 {
        let counts = structures::run(&bytes_of_seed(seed, 6000));
        for (sum, count) in all.iter_mut().zip(counts) {
            *sum += count;
        }
    }
    // Each kind of answer is seen often enough to mean something.
    assert!(all.iter().all(|&count| count > 1000), "{all:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn structures_found_by_proptest_are_walked_as_the_model_walks_them(
        bytes in prop::collection::vec(any::<u8>(), 0..3000)
    ) {
        structures::run(&bytes);
    }
}
