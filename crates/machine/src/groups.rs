//! Group numbers: isolation sets joined by forced numbers, the others numbered
//! in the order of their lowest address, those of virtual functions last.
use crate::build::Origin;
use crate::diagnostic::Report;
use crate::fields::Located;
use crate::model::{FunctionEntry, Group, Translation};
use iogate_pci::topology::Topology;
use std::collections::BTreeMap;

/// The group number of every function of the topology.
pub(crate) fn number(
    topology: &Topology,
    origins: &[Origin<'_>],
    units: &[Translation],
    report: &mut Report,
) -> Option<Vec<u32>> {
    let unit = |index: usize| units.get(index).copied();
    let mut sets: Vec<Vec<usize>> = Vec::new();
    for set in topology.isolation_groups() {
        // Linux drivers/vfio/group.c vfio_noiommu_group_alloc: one a device.
        match set
            .iter()
            .all(|&index| unit(index) == Some(Translation::None))
        {
            true => sets.extend(set.into_iter().map(|index| vec![index])),
            false => sets.push(set),
        }
    }
    // Ports without a unit are in no group: theirs are the last numbers.
    let is_idle = |set: &Vec<usize>| {
        let device = |index: &usize| matches!(origins.get(*index), Some(Origin::Device(_)));
        set.iter()
            .all(|index| unit(*index) == Some(Translation::None) && !device(index))
    };
    sets.sort_by_key(is_idle);
    let mut good = true;
    let mut forced: Vec<Option<u32>> = Vec::new();
    let mut first_of: BTreeMap<u32, usize> = BTreeMap::new();
    for set in &sets {
        good &= one_unit(set, origins, unit, report);
        let number = forced_number(set, origins, report);
        good &= number.is_ok();
        let number = number.ok().flatten();
        forced.push(number.map(|forced| forced.value));
        let (Some(number), Some(&here)) = (number, set.first()) else {
            continue;
        };
        let first = *first_of.entry(number.value).or_insert(here);
        if first != here && unit(first) == Some(Translation::None) || unit(first) != unit(here) {
            let message = match unit(first) == unit(here) {
                true => format!(
                    "group {} would have two devices without IOMMU",
                    number.value
                ),
                false => format!("group {} would span two IOMMUs", number.value),
            };
            let other = origins.get(first).map(|origin| origin.mark());
            report.between(&number.mark, message, other?, "the other part is here");
            good = false;
        }
    }
    if !good {
        return None;
    }
    let mut free = (0u32..).filter(|number| !first_of.contains_key(number));
    let mut numbers = vec![0; origins.len()];
    // Sets that are not there from the beginning come last: the others'
    // numbers are the same without.
    let comes_later = |set: &[usize]| {
        let mut origins = set.iter().filter_map(|&index| origins.get(index));
        origins.all(|origin| matches!(origin, Origin::Virtual(_)))
    };
    let mut order: Vec<_> = sets.iter().zip(forced).collect();
    order.sort_by_key(|(set, _)| comes_later(set));
    for (set, forced) in order {
        let number = forced.or_else(|| free.next())?;
        for &index in set {
            *numbers.get_mut(index)? = number;
        }
    }
    Some(numbers)
}

/// Whether one unit translates the whole set.
fn one_unit(
    set: &[usize],
    origins: &[Origin<'_>],
    unit: impl Fn(usize) -> Option<Translation>,
    report: &mut Report,
) -> bool {
    let Some((&first, others)) = set.split_first() else {
        return true;
    };
    let odd = others.iter().find(|&&other| unit(other) != unit(first));
    let origin = |index: &usize| origins.get(*index).copied();
    let (Some(one), Some(other)) = (origin(&first), odd.and_then(origin)) else {
        return true;
    };
    let message = format!(
        "{} cannot be isolated from {}, but they are behind two IOMMUs",
        other.name(),
        one.name()
    );
    report.between(other.mark(), message, one.mark(), "the other one is here");
    false
}

/// The one number forced on a set; an error if there are two.
fn forced_number<'a>(
    set: &[usize],
    origins: &[Origin<'a>],
    report: &mut Report,
) -> Result<Option<&'a Located<u32>>, ()> {
    let mut found: Option<(&'a Located<u32>, String)> = None;
    for index in set {
        let Some(&Origin::Device(device)) = origins.get(*index) else {
            continue;
        };
        let Some(group) = &device.group else { continue };
        match &found {
            Some((first, who)) if first.value != group.value => {
                let message = format!(
                    "device `{}` cannot be in group {}: it cannot be isolated from {who} in group {}",
                    device.model, group.value, first.value
                );
                report.between(&group.mark, message, &first.mark, "the other group is here");
                return Err(());
            }
            Some(_) => {}
            None => found = Some((group, Origin::Device(device).name())),
        }
    }
    Ok(found.map(|(group, ..)| group))
}

/// The groups of finished functions.
pub(crate) fn collect(functions: &[FunctionEntry]) -> Vec<Group> {
    let mut groups: BTreeMap<u32, Group> = BTreeMap::new();
    for (index, function) in functions.iter().enumerate() {
        let group = groups.entry(function.group).or_insert_with(|| Group {
            number: function.group,
            members: Vec::new(),
            translation: function.translation,
        });
        group.members.push(index);
    }
    groups.into_values().collect()
}
