//! Every instruction form that is known against the processor itself: executed
//! natively on ordinary memory it gives the same registers, flags and memory.
//!
//! `IOGATE_SEED` repeats a run; `IOGATE_INSTANCES` is how many instances of a
//! form are tried.

#![allow(missing_docs)]

#[path = "processor/body.rs"]
mod body;
#[path = "processor/forms.rs"]
mod forms;
#[path = "processor/native.rs"]
mod native;

use std::collections::BTreeSet;

use crate::body::{compare, known};
use crate::forms::Random;
use crate::native::Machine;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn what_is_executed_here_is_what_the_processor_does() {
    let seed = number("IOGATE_SEED").unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        u64::from(now.unwrap().subsec_nanos())
    });
    let instances = number("IOGATE_INSTANCES").unwrap_or(2000);
    println!("IOGATE_SEED={seed} IOGATE_INSTANCES={instances}");
    let mut random = Random::of_seed(seed);
    let mut machine = Machine::new();
    let (mut compared, mut lacking) = (0_u64, BTreeSet::new());
    let mut forms = 0;
    let codes: Vec<_> = known(&machine, &mut random).collect();
    for code in codes {
        if let Some(feature) = forms::lacks(code, machine.features()) {
            lacking.insert(format!("{code:?} ({feature})"));
            continue;
        }
        forms += 1;
        for _ in 0..instances {
            compare(&mut machine, code, &mut random, seed);
            compared += 1;
        }
    }
    println!("{compared} instances of {forms} forms; the processor lacks {lacking:?}");
    assert!(forms > 250, "{forms} forms");
}
