//! Containers and groups as a list of mappings and a few flags: written from
//! the rules in the notes on the kernel's uAPI, without regard to speed.

use std::collections::BTreeSet;

use iogate_dma::FaultReason;
use iogate_uapi::Errno;

use crate::legacy_world::program::SHARED;
use crate::legacy_world::{FIRST, NARROW, PAGE};

/// Mappings that a container may hold.
pub const LIMIT: u32 = 5;

/// The groups, by the device that each has.
pub const GROUPS: [usize; 2] = [FIRST, NARROW];

/// What a group's devices cannot reach: first and last.
fn reserved(group: usize) -> [(u64, u64); 2] {
    match group {
        0 => [(0xfee0_0000, 0xfeef_ffff), (1 << 48, u64::MAX)],
        _ => [(0x800_0000, 0x80f_ffff), (1 << 39, u64::MAX)],
    }
}

fn overlap(a: (u64, u64), b: (u64, u64)) -> bool {
    a.0 <= b.1 && b.0 <= a.1
}

fn is_present(present: &BTreeSet<u64>, vaddr: u64, size: u64) -> bool {
    // More pages than there are cannot all be present.
    let pages = (size / PAGE).min(1 << 20);
    (0..pages).all(|page| present.contains(&(vaddr + page * PAGE)))
}

#[derive(Clone, Debug)]
pub struct Map {
    first: u64,
    last: u64,
    vaddr: u64,
    rights: u32,
    valid: bool,
    /// Pages of the program that went.
    dead: BTreeSet<u64>,
}

#[derive(Default, Debug)]
pub struct Container {
    /// Whether its version is 2, once it is set.
    iommu: Option<bool>,
    tracks: bool,
    maps: Vec<Map>,
}

#[derive(Debug)]
pub struct Model {
    pub containers: [Container; 2],
    pub container_of: [Option<usize>; 2],
    pub open_devices: [usize; 2],
    /// Pages of the program that are there.
    pub present: BTreeSet<u64>,
}

impl Model {
    pub fn new(first: u64, pages: u64) -> Self {
        Self {
            containers: Default::default(),
            container_of: [None; 2],
            open_devices: [0; 2],
            present: (0..pages).map(|page| first + page * PAGE).collect(),
        }
    }

    fn members(&self, container: usize) -> Vec<usize> {
        let groups = 0..GROUPS.len();
        groups
            .filter(|group| self.container_of[*group] == Some(container))
            .collect()
    }

    fn is_reserved(&self, container: usize, range: (u64, u64)) -> bool {
        let groups = self.members(container).into_iter();
        groups.flat_map(reserved).any(|taken| overlap(taken, range))
    }

    pub fn set_container(&mut self, group: usize, container: usize) -> Result<(), Errno> {
        if self.container_of[group].is_some() {
            return Err(Errno::EINVAL);
        }
        let there = &self.containers[container];
        if there.iommu.is_some() {
            if there.maps.iter().any(|map| !map.valid) {
                return Err(Errno::EBUSY);
            }
            let conflict = |map: &Map| {
                reserved(group)
                    .iter()
                    .any(|taken| overlap(*taken, (map.first, map.last)))
            };
            if there.maps.iter().any(conflict) {
                return Err(Errno::EINVAL);
            }
        }
        self.container_of[group] = Some(container);
        Ok(())
    }

    pub fn unset_container(&mut self, group: usize) -> Result<(), Errno> {
        let container = self.container_of[group].ok_or(Errno::EINVAL)?;
        if self.open_devices[group] != 0 {
            return Err(Errno::EBUSY);
        }
        self.container_of[group] = None;
        if self.members(container).is_empty() {
            self.containers[container] = Container::default();
        }
        Ok(())
    }

    pub fn set_iommu(&mut self, container: usize, kind: u64) -> Result<(), Errno> {
        if self.members(container).is_empty() || self.containers[container].iommu.is_some() {
            return Err(Errno::EINVAL);
        }
        self.containers[container].iommu = match kind {
            1 => Some(false),
            3 => Some(true),
            9 => return Err(Errno::EINVAL),
            _ => return Err(Errno::ENODEV),
        };
        Ok(())
    }

    pub fn open_device(&mut self, group: usize) -> Result<(), Errno> {
        let container = self.container_of[group].ok_or(Errno::EINVAL)?;
        self.containers[container].iommu.ok_or(Errno::EINVAL)?;
        self.open_devices[group] += 1;
        Ok(())
    }

    pub fn map(
        &mut self,
        container: usize,
        flags: u32,
        (vaddr, iova, size): (u64, u64, u64),
    ) -> Result<(), Errno> {
        self.containers[container].iommu.ok_or(Errno::EINVAL)?;
        if flags & !7 != 0 || size == 0 {
            return Err(Errno::EINVAL);
        }
        let last = iova.checked_add(size - 1).ok_or(Errno::EOVERFLOW)?;
        vaddr.checked_add(size - 1).ok_or(Errno::EOVERFLOW)?;
        let update = flags & 4 != 0;
        if (flags & 3 != 0) == update {
            return Err(Errno::EINVAL);
        }
        if [vaddr, iova, size].iter().any(|value| value % PAGE != 0) {
            return Err(Errno::EINVAL);
        }
        let range = (iova, last);
        let is_reserved = self.is_reserved(container, range);
        let Container { maps, .. } = &mut self.containers[container];
        let hit = maps
            .iter_mut()
            .find(|map| overlap((map.first, map.last), range));
        match (hit, update) {
            (None, true) => return Err(Errno::ENOENT),
            (Some(_), false) => return Err(Errno::EEXIST),
            (Some(map), true) => {
                if map.valid || (map.first, map.last) != range {
                    return Err(Errno::EINVAL);
                }
                map.valid = true;
                // Private memory is reached by its new addresses, if any.
                if map.vaddr < SHARED && is_present(&self.present, vaddr, size) {
                    map.vaddr = vaddr;
                    map.dead.clear();
                }
                return Ok(());
            }
            (None, false) => {}
        }
        if maps.len() >= LIMIT as usize {
            return Err(Errno::ENOSPC);
        }
        if is_reserved {
            return Err(Errno::EINVAL);
        }
        if !is_present(&self.present, vaddr, size) {
            return Err(Errno::EFAULT);
        }
        maps.push(Map {
            first: iova,
            last,
            vaddr,
            rights: flags & 3,
            valid: true,
            dead: BTreeSet::new(),
        });
        maps.sort_by_key(|map| map.first);
        Ok(())
    }

    pub fn unmap(
        &mut self,
        container: usize,
        flags: u32,
        iova: u64,
        size: u64,
    ) -> Result<u64, Errno> {
        let there = &mut self.containers[container];
        let version_2 = there.iommu.ok_or(Errno::EINVAL)?;
        // Bitmaps are asked for elsewhere.
        if flags & !6 != 0 {
            return Err(Errno::EINVAL);
        }
        let all = flags & 2 != 0;
        let (first, last) = if all {
            if iova != 0 || size != 0 {
                return Err(Errno::EINVAL);
            }
            (0, u64::MAX)
        } else {
            if size == 0 || !(iova | size).is_multiple_of(PAGE) {
                return Err(Errno::EINVAL);
            }
            let last = iova.checked_add(size - 1).ok_or(Errno::EOVERFLOW)?;
            (iova, last)
        };
        let is_hit = |map: &Map| overlap((map.first, map.last), (first, last));
        let is_cut = |map: &Map| is_hit(map) && (map.first < first || map.last > last);
        if version_2 && !all && there.maps.iter().any(is_cut) {
            return Err(Errno::EINVAL);
        }
        // In version 1 nothing goes if the lowest begins before the range.
        let lowest = there.maps.iter().find(|map| is_hit(map));
        if !version_2 && lowest.is_some_and(|map| map.first < first) {
            return Ok(0);
        }
        let mut bytes = 0;
        if flags & 4 != 0 {
            if there.maps.iter().any(|map| is_hit(map) && !map.valid) {
                return Err(Errno::EINVAL);
            }
            for map in there.maps.iter_mut().filter(|map| is_hit(map)) {
                map.valid = false;
                bytes += map.last - map.first + 1;
            }
        } else {
            there.maps.retain(|map| {
                let hit = is_hit(map);
                if hit {
                    bytes += map.last - map.first + 1;
                }
                !hit
            });
        }
        Ok(bytes)
    }

    pub fn track(&mut self, container: usize, on: bool) -> Result<(), Errno> {
        match self.containers[container].iommu {
            None => Err(Errno::EINVAL),
            Some(false) => Err(Errno::EACCES),
            Some(true) => {
                self.containers[container].tracks = on;
                Ok(())
            }
        }
    }

    /// The bits of 64 pages from `iova` on.
    pub fn dirty(&self, container: usize, iova: u64) -> Result<u64, Errno> {
        let there = &self.containers[container];
        match there.iommu {
            None => return Err(Errno::EINVAL),
            Some(false) => return Err(Errno::EACCES),
            Some(true) => {}
        }
        let last = iova.checked_add(64 * PAGE - 1).ok_or(Errno::EOVERFLOW)?;
        if !there.tracks || !iova.is_multiple_of(PAGE) {
            return Err(Errno::EINVAL);
        }
        let mut bits = 0;
        for map in &there.maps {
            if !overlap((map.first, map.last), (iova, last)) {
                continue;
            }
            if map.first < iova || map.last > last {
                return Err(Errno::EINVAL);
            }
            for page in 0..64 {
                let at = iova + page * PAGE;
                if map.first <= at && at <= map.last {
                    bits |= 1 << page;
                }
            }
        }
        Ok(bits)
    }

    /// The program unmaps a page: private memory behind mappings is dead.
    pub fn take(&mut self, page: u64) {
        self.present.remove(&page);
        if page >= SHARED {
            return;
        }
        for map in self.containers.iter_mut().flat_map(|one| &mut one.maps) {
            let size = map.last - map.first;
            if map.vaddr <= page && page - map.vaddr <= size {
                map.dead.insert(page);
            }
        }
    }

    pub fn give(&mut self, page: u64) {
        self.present.insert(page);
    }

    pub fn available(&self, container: usize) -> Option<u32> {
        let there = &self.containers[container];
        there.iommu?;
        Some(LIMIT - there.maps.len() as u32)
    }

    /// Which address of the program a device's access of one byte reaches.
    pub fn reaches(&self, group: usize, iova: u64, write: bool) -> Result<u64, FaultReason> {
        let container = self.container_of[group].ok_or(FaultReason::Blocked)?;
        let there = &self.containers[container];
        there.iommu.ok_or(FaultReason::Blocked)?;
        let hit = there
            .maps
            .iter()
            .find(|map| map.first <= iova && iova <= map.last);
        let Some(map) = hit else {
            return Err(match self.is_reserved(container, (iova, iova)) {
                true => FaultReason::Reserved,
                false => FaultReason::NotMapped,
            });
        };
        if map.rights & (1 << u32::from(write)) == 0 {
            return Err(FaultReason::Permission);
        }
        let address = map.vaddr + (iova - map.first);
        match map.dead.contains(&(address - address % PAGE)) {
            true => Err(FaultReason::Revoked),
            false => Ok(address),
        }
    }

    /// First address and size of every mapping of a container.
    pub fn known(&self, container: usize) -> Vec<(u64, u64)> {
        let maps = self.containers[container].maps.iter();
        maps.map(|map| (map.first, map.last - map.first + 1))
            .collect()
    }

    /// Where something begins or ends: addresses worth a look.
    pub fn edges(&self) -> Vec<u64> {
        let mut edges = vec![0, 0x7ff_ffff, 0x800_0000, 0xfee0_0000, 0xfef0_0000, 1 << 48];
        for map in self.containers.iter().flat_map(|one| &one.maps) {
            edges.extend([map.first, map.last, map.last.wrapping_add(1)]);
            edges.push(map.first + (map.last - map.first) / 2);
        }
        edges
    }
}
