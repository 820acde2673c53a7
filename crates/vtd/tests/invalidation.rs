//! What a guest invalidates is not used any more; what it does not may be. Against every state that could be cached.

mod guest;
mod naive;
#[path = "bodies/sequence.rs"]
mod sequence;
#[path = "bodies/structures.rs"]
#[allow(dead_code, reason = "its units are used here")]
mod structures;

use naive::choices::bytes_of_seed;
use proptest::prelude::*;

#[test]
fn every_answer_is_explained_by_what_was_not_invalidated_since() {
    for seed in 0..300 {
        sequence::run(&bytes_of_seed(seed, 4000));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(100) })]

    #[test]
    fn sequences_found_by_proptest_are_explained(
        bytes in prop::collection::vec(any::<u8>(), 0..3000)
    ) {
        sequence::run(&bytes);
    }
}
