//! Guests without sense, and structures that change while they are read.

#[path = "bodies/changing.rs"]
mod changing;
mod guest;
#[path = "bodies/hostile.rs"]
mod hostile;
mod naive;
#[path = "bodies/structures.rs"]
#[allow(dead_code, reason = "its units are used here")]
mod structures;

use naive::choices::bytes_of_seed;
use proptest::prelude::*;

#[test]
fn a_guest_without_sense_comes_to_no_panic_and_a_reset_leads_back() {
    for seed in 0..300 {
        hostile::run(&bytes_of_seed(seed, 3000));
    }
}

#[test]
fn a_walk_of_changing_tables_finds_what_was_or_what_is() {
    let met: u64 = (0..200)
        .map(|seed| changing::run(&bytes_of_seed(seed, 5000)))
        .sum();
    assert!(met > 1000, "{met} changes were on the way of a request");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) })]

    #[test]
    fn what_proptest_thinks_of_does_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        hostile::run(&bytes);
        changing::run(&bytes);
    }
}
