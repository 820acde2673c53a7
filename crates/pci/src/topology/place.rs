//! Slots: which function may be where, and the device and function numbers of
//! those that did not ask for an address.
use super::numbers::{self, Bridges};
use super::{BridgeKind, FunctionKind, Misplaced, Placed, Planned, TopologyError};
use iogate_dma::{RequesterId, Source};
use std::collections::BTreeMap;

/// A bus before it has a number: the root bus of a segment, or the bus behind
/// a bridge.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Bus {
    Root(u16),
    Behind(usize),
}

/// No function can be behind more bridges: a segment has 256 buses.
const MAX_DEPTH: usize = 255;

/// Device and function number.
type Slot = (u8, u8);

pub(super) fn place(planned: &[Planned]) -> Result<Vec<Placed>, TopologyError> {
    let roots = roots(planned)?;
    let mut buses: BTreeMap<Bus, Vec<usize>> = BTreeMap::new();
    for (index, (plan, &(segment, _))) in planned.iter().zip(&roots).enumerate() {
        fits(planned, index, plan)?;
        if let Some(at) = plan.at
            && at.segment != segment
        {
            return Err(TopologyError::one(index, Misplaced::OtherSegment(segment)));
        }
        let bus = plan.parent.map_or(Bus::Root(segment), Bus::Behind);
        buses.entry(bus).or_default().push(index);
    }
    let mut slots: Vec<Slot> = vec![(0, 0); planned.len()];
    let mut shared = vec![false; planned.len()];
    for (bus, members) in &buses {
        for (&(device, function), &index) in &occupy(planned, *bus, members)? {
            if let Some(slot) = slots.get_mut(index) {
                *slot = (device, function);
            }
        }
        let slots = &slots;
        let in_slot = |device| {
            let same = move |m: &&usize| slots.get(**m).is_some_and(|s| s.0 == device);
            members.iter().filter(same)
        };
        for &index in members {
            let device = slots.get(index).map_or(0, |s| s.0);
            if let Some(flag) = shared.get_mut(index) {
                *flag = in_slot(device).count() > 1;
            }
            if !in_slot(device).any(|&m| slots.get(m).is_some_and(|s| s.1 == 0)) {
                return Err(TopologyError::one(index, Misplaced::NoFunctionZero));
            }
        }
    }
    let numbers = numbers::number(planned, &buses)?;
    Ok(functions(planned, &roots, &slots, &shared, &numbers))
}

fn functions(
    planned: &[Planned],
    roots: &[(u16, usize)],
    slots: &[Slot],
    shared: &[bool],
    numbers: &Bridges,
) -> Vec<Placed> {
    let parts = planned.iter().zip(roots).zip(slots).zip(shared);
    parts
        .enumerate()
        .map(
            |(index, (((plan, &(segment, _)), &(device, function)), &multifunction))| {
                let bus = plan
                    .parent
                    .and_then(|parent| numbers.get(&parent))
                    .map_or(0, |buses| buses.secondary);
                let requester = RequesterId::new(bus, device, function).unwrap_or(RequesterId(0));
                Placed {
                    kind: plan.kind,
                    parent: plan.parent,
                    address: Source::new(segment, requester),
                    buses: numbers.get(&index).copied(),
                    multifunction,
                    express: express(planned, plan),
                    acs: plan.acs,
                    ari: false,
                    virtual_of: None,
                }
            },
        )
        .collect()
}

fn kind_of(planned: &[Planned], index: usize) -> Option<BridgeKind> {
    match planned.get(index)?.kind {
        FunctionKind::Bridge(kind) => Some(kind),
        FunctionKind::Endpoint => None,
    }
}

fn express(planned: &[Planned], plan: &Planned) -> bool {
    use BridgeKind::{PciToPci, PcieToPci};
    match plan.kind {
        FunctionKind::Bridge(kind) => kind != PciToPci,
        FunctionKind::Endpoint => !matches!(
            plan.parent.and_then(|parent| kind_of(planned, parent)),
            Some(PcieToPci | PciToPci)
        ),
    }
}

/// For every function its segment and the function on the root bus that it is
/// behind (or is).
fn roots(planned: &[Planned]) -> Result<Vec<(u16, usize)>, TopologyError> {
    let root_of = |index: usize| {
        let mut at = index;
        for _ in 0..=MAX_DEPTH.min(planned.len()) {
            match planned.get(at) {
                Some(plan) => match plan.parent {
                    Some(parent) => at = parent,
                    None => return Ok((plan.segment, at)),
                },
                None => return Err(TopologyError::one(index, Misplaced::NotABridge)),
            }
        }
        let reason = match planned.len() {
            0..=MAX_DEPTH => Misplaced::Loop,
            _ => Misplaced::TooDeep,
        };
        Err(TopologyError::one(index, reason))
    };
    (0..planned.len()).map(root_of).collect()
}

/// Whether a function of this kind may be where it is to be.
fn fits(planned: &[Planned], index: usize, plan: &Planned) -> Result<(), TopologyError> {
    use BridgeKind::{DownstreamPort, PciToPci, PcieToPci, RootPort, UpstreamPort};
    let Some(parent) = plan.parent else {
        let wrong = match plan.kind {
            FunctionKind::Bridge(UpstreamPort) => Misplaced::WrongBus(
                "an upstream port",
                "needs a root or downstream port above it",
            ),
            FunctionKind::Bridge(DownstreamPort) => {
                Misplaced::WrongBus("a downstream port", "needs an upstream port above it")
            }
            _ if plan.at.is_some_and(|at| at.requester.bus() != 0) => Misplaced::OffRootBus,
            _ => return Ok(()),
        };
        return Err(TopologyError::one(index, wrong));
    };
    let Some(above) = kind_of(planned, parent) else {
        return Err(TopologyError::two(index, parent, Misplaced::NotABridge));
    };
    let link = matches!(above, RootPort | DownstreamPort);
    let conventional = matches!(above, PcieToPci | PciToPci);
    let wrong = match plan.kind {
        FunctionKind::Bridge(RootPort) => Some(("a root port", "sits on a root bus")),
        FunctionKind::Bridge(UpstreamPort) if !link => Some((
            "an upstream port",
            "needs a root or downstream port above it",
        )),
        FunctionKind::Bridge(DownstreamPort) if above != UpstreamPort => {
            Some(("a downstream port", "needs an upstream port above it"))
        }
        FunctionKind::Bridge(PcieToPci) if !link => Some((
            "a PCIe-to-PCI bridge",
            "needs a root or downstream port above it, or the root bus",
        )),
        FunctionKind::Bridge(PciToPci) if !conventional => Some((
            "a PCI-to-PCI bridge",
            "needs a conventional bus above it, or the root bus",
        )),
        FunctionKind::Endpoint if above == UpstreamPort => Some((
            "a device",
            "cannot be behind an upstream port: put a downstream port between them",
        )),
        _ => None,
    };
    match wrong {
        Some((who, why)) => Err(TopologyError::two(
            index,
            parent,
            Misplaced::WrongBus(who, why),
        )),
        None => Ok(()),
    }
}

/// The slots of one bus: first those asked for, then the others in order.
fn occupy(
    planned: &[Planned],
    bus: Bus,
    members: &[usize],
) -> Result<BTreeMap<Slot, usize>, TopologyError> {
    use BridgeKind::{DownstreamPort, RootPort, UpstreamPort};
    let above = match bus {
        Bus::Root(_) => None,
        Bus::Behind(bridge) => kind_of(planned, bridge),
    };
    let devices = match above {
        Some(RootPort | DownstreamPort) => 0..1u8,
        Some(UpstreamPort) => 0..32,
        _ => 1..32,
    };
    let is_link = devices.end == 1;
    let asked = |&&index: &&usize| planned.get(index).is_some_and(|plan| plan.at.is_some());
    let mut taken: BTreeMap<Slot, usize> = BTreeMap::new();
    for &index in members.iter().filter(asked) {
        let Some(at) = planned.get(index).and_then(|plan| plan.at) else {
            continue;
        };
        let slot = (at.requester.device(), at.requester.function());
        if is_link && slot.0 != 0 {
            return Err(TopologyError::one(index, Misplaced::NotDeviceZero));
        }
        if let Some(first) = taken.insert(slot, index) {
            let reason = Misplaced::AddressTaken(at);
            return Err(TopologyError::two(index, first, reason));
        }
    }
    for &index in members.iter().filter(|index| !asked(index)) {
        let empty = |device: &u8| taken.range((*device, 0)..=(*device, 7)).next().is_none();
        let slot = devices.clone().find(empty).map(|device| (device, 0));
        let mut all = devices.clone().flat_map(|d| (0..8).map(move |f| (d, f)));
        let slot = slot.or_else(|| all.find(|slot| !taken.contains_key(slot)));
        let slot = slot.ok_or(TopologyError::one(index, Misplaced::BusFull))?;
        taken.insert(slot, index);
    }
    Ok(taken)
}
