//! Bus numbers: depth first, so that a bridge's range holds those of the
//! bridges behind it, and so that numbers asked for come out.
use super::place::Bus;
use super::{Buses, FunctionKind, Misplaced, Planned, TopologyError};
use std::collections::{BTreeMap, VecDeque};

/// The numbers of every bridge, by its index.
pub(super) type Bridges = BTreeMap<usize, Buses>;

pub(super) fn number(
    planned: &[Planned],
    buses: &BTreeMap<Bus, Vec<usize>>,
) -> Result<Bridges, TopologyError> {
    let mut numbering = Numbering {
        planned,
        buses,
        asked: asked(planned, buses)?,
        needs: BTreeMap::new(),
        numbers: Bridges::new(),
    };
    for &bus in buses.keys() {
        if let Bus::Root(segment) = bus {
            numbering.measure(bus);
            numbering.behind(bus, segment, 0)?;
        }
    }
    Ok(numbering.numbers)
}

/// The number asked for of each bus behind a bridge, and who asks.
fn asked(
    planned: &[Planned],
    buses: &BTreeMap<Bus, Vec<usize>>,
) -> Result<BTreeMap<usize, (u8, usize)>, TopologyError> {
    let mut asked: BTreeMap<usize, (u8, usize)> = BTreeMap::new();
    for (bus, members) in buses {
        let Bus::Behind(bridge) = *bus else { continue };
        for &index in members {
            let Some(at) = planned.get(index).and_then(|plan| plan.at) else {
                continue;
            };
            let number = at.requester.bus();
            let (first_number, first) = *asked.entry(bridge).or_insert((number, index));
            if first_number != number {
                let reason = Misplaced::TwoBusNumbers;
                return Err(TopologyError::two(index, first, reason));
            }
        }
    }
    Ok(asked)
}

/// What the buses behind one bridge need.
#[derive(Clone, Copy)]
struct Need {
    /// How many buses there are.
    count: u16,
    /// The highest number that the bridge's secondary bus can have.
    at_most: Option<u16>,
}

struct Numbering<'a> {
    planned: &'a [Planned],
    buses: &'a BTreeMap<Bus, Vec<usize>>,
    asked: BTreeMap<usize, (u8, usize)>,
    needs: BTreeMap<usize, Need>,
    numbers: Bridges,
}

impl Numbering<'_> {
    fn bridges_on(&self, bus: Bus) -> Vec<usize> {
        let is_bridge = |&index: &usize| {
            let kind = self.planned.get(index).map(|plan| plan.kind);
            matches!(kind, Some(FunctionKind::Bridge(_)))
        };
        let members = self.buses.get(&bus).into_iter().flatten().copied();
        members.filter(is_bridge).collect()
    }

    /// Fills in the needs of every bridge on `bus` and below it.
    fn measure(&mut self, bus: Bus) {
        for bridge in self.bridges_on(bus) {
            self.measure(Bus::Behind(bridge));
            let below = self.bridges_on(Bus::Behind(bridge));
            let needs = below.iter().filter_map(|child| self.needs.get(child));
            let count = needs
                .clone()
                .fold(1u16, |n, need| n.saturating_add(need.count));
            let at_most = match self.asked.get(&bridge) {
                Some(&(number, _)) => Some(u16::from(number)),
                None => needs
                    .filter_map(|need| need.at_most)
                    .min()
                    .map(|n| n.saturating_sub(1)),
            };
            self.needs.insert(bridge, Need { count, at_most });
        }
    }

    /// Numbers the buses behind the bridges on `bus`, whose own number is
    /// `primary`; gives the highest number used. Bridges that are free to have
    /// any number go before one that is not, as long as they fit there.
    fn behind(&mut self, bus: Bus, segment: u16, primary: u8) -> Result<u8, TopologyError> {
        let need = |this: &Self, bridge: &usize| {
            let need = this.needs.get(bridge).copied();
            need.unwrap_or(Need {
                count: 1,
                at_most: None,
            })
        };
        let (mut bound, free): (Vec<usize>, Vec<usize>) = self
            .bridges_on(bus)
            .into_iter()
            .partition(|bridge| need(self, bridge).at_most.is_some());
        bound.sort_by_key(|bridge| need(self, bridge).at_most);
        let mut free: VecDeque<usize> = free.into();
        let mut last = primary;
        for bridge in bound {
            let limit = need(self, &bridge).at_most.unwrap_or(u16::MAX);
            while let Some(&next) = free.front() {
                if u16::from(last).saturating_add(need(self, &next).count) >= limit {
                    break;
                }
                free.pop_front();
                last = self.bridge(next, segment, primary, last)?;
            }
            last = self.bridge(bridge, segment, primary, last)?;
        }
        for bridge in free {
            last = self.bridge(bridge, segment, primary, last)?;
        }
        Ok(last)
    }

    /// Numbers one bridge and all below it, above `last`; gives its
    /// subordinate number.
    fn bridge(
        &mut self,
        bridge: usize,
        segment: u16,
        primary: u8,
        last: u8,
    ) -> Result<u8, TopologyError> {
        let none_left = TopologyError::one(bridge, Misplaced::NoBusLeft(segment));
        let secondary = match self.asked.get(&bridge) {
            Some(&(number, who)) if number <= last => {
                let free = u16::from(last).saturating_add(1);
                let reason = Misplaced::BusNotFree(number, free);
                return Err(TopologyError::one(who, reason));
            }
            Some(&(number, _)) => number,
            None => last.checked_add(1).ok_or(none_left)?,
        };
        let subordinate = self.behind(Bus::Behind(bridge), segment, secondary)?;
        let buses = Buses {
            primary,
            secondary,
            subordinate,
        };
        self.numbers.insert(bridge, buses);
        Ok(subordinate)
    }
}
