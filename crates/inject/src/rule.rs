//! One rule: what fails, how, and which time.

use iogate_dma::Source;
use iogate_uapi::Errno;

/// What a rule is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum What {
    /// These calls fail with this errno.
    Calls(Vec<&'static str>, Errno),
    /// An access to memory is refused.
    Dma,
    /// An interrupt message is lost.
    Interrupt,
    /// The device is gone from an access to its registers on.
    Vanish,
}

/// Which of the occurrences that a rule counts it takes effect on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum When {
    /// The one with this number, from 1.
    Nth(u64),
    /// That one and all later ones.
    From(u64),
    /// Each with this chance, in millionths.
    Chance(u32),
}

impl When {
    /// Whether occurrence `number`, from 1, is one; `dice` is what chance has
    /// for it.
    pub(crate) fn is(self, number: u64, dice: u64) -> bool {
        match self {
            Self::Nth(nth) => number == nth,
            Self::From(first) => number >= first,
            Self::Chance(millionths) => dice % 1_000_000 < u64::from(millionths),
        }
    }
}

/// One rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Rule {
    /// As it was written.
    pub(crate) text: String,
    pub(crate) what: What,
    pub(crate) when: When,
    /// The devices that it is about; none named means all.
    pub(crate) devices: Option<Vec<Source>>,
}

impl Rule {
    /// Whether the rule is about `device`, or about what belongs to none.
    pub(crate) fn is_about(&self, device: Option<Source>) -> bool {
        let Some(devices) = &self.devices else {
            return true;
        };
        device.is_some_and(|device| devices.contains(&device))
    }
}

/// What chance has for an occurrence: the same for the same four numbers.
/// The finaliser of SplitMix64 (Steele, Lea, Flood: Fast splittable
/// pseudorandom number generators, 2014).
pub(crate) fn dice(seed: u64, rule: u64, device: u64, number: u64) -> u64 {
    [rule, device, number].into_iter().fold(mix(seed), |z, n| {
        mix(z.wrapping_add(n).wrapping_add(0x9e37_79b9_7f4a_7c15))
    })
}

fn mix(z: u64) -> u64 {
    let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chance_is_met_about_as_often_as_it_says() {
        for percent in [1, 10, 50] {
            let when = When::Chance(percent * 10_000);
            let hits = (1..=100_000).filter(|n| when.is(*n, dice(7, 0, 256, *n)));
            let expected = i64::from(percent) * 1000;
            let hits = i64::try_from(hits.count()).unwrap();
            assert!((hits - expected).abs() < 600, "{percent} %: {hits}");
        }
    }

    #[test]
    fn another_seed_rule_or_device_has_other_dice() {
        let rolls = [
            dice(1, 0, 0, 1),
            dice(2, 0, 0, 1),
            dice(1, 1, 0, 1),
            dice(1, 0, 1, 1),
        ];
        for (at, roll) in rolls.iter().enumerate() {
            assert!(!rolls[..at].contains(roll));
        }
    }
}
