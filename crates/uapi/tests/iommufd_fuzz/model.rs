//! A naive model of one iommufd: lists that are searched from end to end, in
//! the words of the kernel's rules.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, Weak};

use iogate_uapi::Errno;

use crate::areas::{Area, Ioas, Memory, Pin};
use crate::iommufd_world::*;

/// All addresses and lengths are multiples of this.
pub const UNIT: u64 = 1024;

/// The devices, by index in the world.
pub const DEVICES: [usize; 5] = [TWIN_A, TWIN_B, ALONE, FINE, CROWDED];
const GROUPS: [u32; 5] = [1, 1, 2, 7, 8];
const PAGE_SIZES: [u64; 5] = [0x4020_1000, 0x4020_1000, 0x4020_1000, 0x800, 0x1000];
const MSI: (u64, u64) = (0xfee0_0000, 0xfeef_ffff);
const RESERVED: [Option<(u64, u64)>; 5] = [
    Some(MSI),
    Some(MSI),
    Some(MSI),
    None,
    Some((0x8000, 0x9fff)),
];

/// What stands in the program's memory.
pub fn content(at: u64) -> u8 {
    let unit = at / UNIT;
    (unit ^ (unit >> 7)) as u8 | 1
}

struct Hwpt {
    ioas: u32,
    sizes: u64,
    auto: bool,
}

enum Object {
    Device(usize),
    Ioas(Ioas),
    Hwpt(Hwpt),
}

/// One iommufd, its devices and the program's memory.
pub struct Model {
    objects: BTreeMap<u32, Object>,
    /// By group: the page table, and which devices are attached.
    links: BTreeMap<u32, (u32, Vec<usize>)>,
    present: BTreeSet<u64>,
    /// The IOAS that VFIO's calls are about.
    vfio: Option<u32>,
}

/// Pages, where in them, and how many bytes.
type Parts = Vec<(Arc<Memory>, u64, u64)>;
/// What may be mapped, and the alignment.
pub type Ranges = (Vec<(u64, u64)>, u64);

impl Model {
    pub fn new() -> Self {
        Self {
            objects: BTreeMap::new(),
            links: BTreeMap::new(),
            present: (0..HEAP_PAGES).collect(),
            vfio: None,
        }
    }

    fn insert(&mut self, object: Object) -> u32 {
        let id = (1..).find(|id| !self.objects.contains_key(id)).unwrap();
        self.objects.insert(id, object);
        id
    }

    fn ioas(&mut self, id: u32) -> Result<&mut Ioas, Errno> {
        match self.objects.get_mut(&id) {
            Some(Object::Ioas(ioas)) => Ok(ioas),
            _ => Err(Errno::ENOENT),
        }
    }

    fn hwpt(&self, id: u32) -> Option<&Hwpt> {
        match self.objects.get(&id) {
            Some(Object::Hwpt(hwpt)) => Some(hwpt),
            _ => None,
        }
    }

    fn number(&self, which: usize) -> u32 {
        let device = |object: &Object| matches!(object, Object::Device(at) if *at == which);
        *self
            .objects
            .iter()
            .find(|(_, object)| device(object))
            .unwrap()
            .0
    }

    pub fn ioas_alloc(&mut self) -> u32 {
        self.insert(Object::Ioas(Ioas {
            areas: Vec::new(),
            reserved: Vec::new(),
            allowed: Vec::new(),
            alignment: 1,
            huge_pages: true,
            domains: Vec::new(),
        }))
    }

    fn numbers(&self, of: impl Fn(&Object) -> bool) -> Vec<u32> {
        let objects = self.objects.iter().filter(|(_, object)| of(object));
        objects.map(|(id, _)| *id).collect()
    }

    pub fn spaces(&self) -> Vec<u32> {
        self.numbers(|object| matches!(object, Object::Ioas(_)))
    }

    pub fn devices(&self) -> Vec<u32> {
        self.numbers(|object| matches!(object, Object::Device(_)))
    }

    /// What a device can be attached to.
    pub fn tables(&self) -> Vec<u32> {
        self.numbers(|object| !matches!(object, Object::Device(_)))
    }

    /// The areas of an IOAS.
    pub fn spans(&self, ioas: u32) -> Vec<(u64, u64)> {
        match self.objects.get(&ioas) {
            Some(Object::Ioas(ioas)) => {
                let spans = ioas.areas.iter().map(|area| (area.first, area.length));
                spans.collect()
            }
            _ => Vec::new(),
        }
    }

    pub fn is_attached(&self, which: usize) -> bool {
        self.links.contains_key(&GROUPS[which])
    }

    pub fn is_present(&self, page: u64) -> bool {
        self.present.contains(&page)
    }

    pub fn give(&mut self, page: u64) {
        self.present.insert(page);
    }

    pub fn take(&mut self, page: u64) {
        self.present.remove(&page);
        if page.is_multiple_of(2) {
            return;
        }
        for area in self.areas_mut() {
            let from = (area.memory.start + area.offset - HEAP) / PAGE;
            let to = (area.memory.start + area.offset + area.length - 1 - HEAP) / PAGE;
            if area.pin.is_some() && (from..=to).contains(&page) {
                area.dead.insert(page);
                area.memory.pins.lock().unwrap().clear();
            }
        }
    }

    fn areas_mut(&mut self) -> impl Iterator<Item = &mut Area> {
        self.objects.values_mut().flat_map(|object| match object {
            Object::Ioas(ioas) => ioas.areas.iter_mut(),
            _ => [].iter_mut(),
        })
    }

    fn areas(&self) -> impl Iterator<Item = &Area> {
        self.objects.values().flat_map(|object| match object {
            Object::Ioas(ioas) => ioas.areas.iter(),
            _ => [].iter(),
        })
    }

    fn pin(
        present: &BTreeSet<u64>,
        memory: &Arc<Memory>,
        offset: u64,
        length: u64,
        rights: u32,
    ) -> Result<Arc<Pin>, Errno> {
        let rights = rights | memory.rights;
        let mut pins = memory.pins.lock().unwrap();
        let live = pins.iter().filter_map(Weak::upgrade);
        let fits = |pin: &Arc<Pin>| {
            pin.offset <= offset
                && offset + length <= pin.offset + pin.length
                && pin.rights & rights == rights
        };
        if let Some(pin) = live.into_iter().find(fits) {
            return Ok(pin);
        }
        let from = memory.start + offset - HEAP;
        for page in from / PAGE..=(from + length - 1) / PAGE {
            if !present.contains(&page) {
                return Err(Errno::EFAULT);
            }
        }
        let pin = Arc::new(Pin {
            offset,
            length,
            rights,
        });
        pins.push(Arc::downgrade(&pin));
        Ok(pin)
    }

    pub fn map(
        &mut self,
        ioas: u32,
        flags: u32,
        va: u64,
        length: u64,
        iova: u64,
    ) -> Result<u64, Errno> {
        if flags & RW == 0 {
            return Err(Errno::EINVAL);
        }
        self.ioas(ioas)?;
        let memory = Arc::new(Memory {
            start: va,
            rights: flags & RW,
            pins: Mutex::default(),
        });
        self.map_parts(ioas, vec![(memory, 0, length)], flags, iova)
    }

    pub fn copy(
        &mut self,
        flags: u32,
        from: u32,
        source: u64,
        to: u32,
        iova: u64,
        length: u64,
    ) -> Result<u64, Errno> {
        if flags & RW == 0 {
            return Err(Errno::EINVAL);
        }
        let source_ioas = self.ioas(from)?;
        if length == 0 {
            return Err(Errno::EINVAL);
        }
        let mut parts = Parts::new();
        let mut at = source;
        while at < source + length {
            let hit = source_ioas
                .areas
                .iter()
                .find(|area| area.first <= at && at < area.end());
            let area = hit.ok_or(Errno::ENOENT)?;
            let end = area.end().min(source + length);
            parts.push((
                Arc::clone(&area.memory),
                area.offset + at - area.first,
                end - at,
            ));
            at = end;
        }
        self.ioas(to)?;
        self.map_parts(to, parts, flags, iova)
    }

    fn map_parts(&mut self, id: u32, parts: Parts, flags: u32, iova: u64) -> Result<u64, Errno> {
        let present = self.present.clone();
        let ioas = self.ioas(id)?;
        let length: u64 = parts.iter().map(|part| part.2).sum();
        if length == 0 || !length.is_multiple_of(ioas.alignment) {
            return Err(Errno::EINVAL);
        }
        let first = if flags & FIXED != 0 {
            if !iova.is_multiple_of(ioas.alignment) || ioas.is_reserved(iova, length) {
                return Err(Errno::EINVAL);
            }
            if ioas.is_mapped(iova, length) {
                return Err(Errno::EEXIST);
            }
            iova
        } else {
            ioas.find(parts[0].0.start + parts[0].1, length)?
        };
        for (memory, offset, _) in &parts {
            if flags & W != 0 && memory.rights & W == 0 {
                return Err(Errno::EPERM);
            }
            let within = (memory.start + offset) % PAGE;
            if !within.is_multiple_of(ioas.alignment) {
                return Err(Errno::EINVAL);
            }
        }
        let mut areas = Vec::new();
        let mut at = first;
        for (memory, offset, length) in parts {
            let pin = match ioas.domains.is_empty() {
                true => None,
                false => Some(Self::pin(&present, &memory, offset, length, flags & RW)?),
            };
            areas.push(Area {
                first: at,
                length,
                memory,
                offset,
                rights: flags & RW,
                pin,
                dead: BTreeSet::new(),
            });
            at += length;
        }
        ioas.areas.extend(areas);
        ioas.areas.sort_by_key(|area| area.first);
        Ok(first)
    }

    pub fn vfio_ioas(&self) -> Result<u32, Errno> {
        self.vfio.ok_or(Errno::ENODEV)
    }

    pub fn set_vfio_ioas(&mut self, ioas: u32) -> Result<(), Errno> {
        self.ioas(ioas)?;
        self.vfio = Some(ioas);
        Ok(())
    }

    pub fn clear_vfio_ioas(&mut self) {
        self.vfio = None;
    }

    pub fn unmap(&mut self, ioas: u32, iova: u64, length: u64) -> Result<u64, Errno> {
        let ioas = self.ioas(ioas)?;
        let all = iova == 0 && length == u64::MAX;
        if length == u64::MAX && !all {
            return Err(Errno::EOVERFLOW);
        }
        if length == 0 {
            return Err(Errno::EINVAL);
        }
        let end = if all { u64::MAX } else { iova + length };
        let mut bytes = 0;
        while let Some(at) = ioas
            .areas
            .iter()
            .position(|area| area.first < end && area.end() > iova)
        {
            let area = &ioas.areas[at];
            if area.first < iova || area.end() > end {
                return Err(Errno::ENOENT);
            }
            bytes += area.length;
            ioas.areas.remove(at);
        }
        match bytes {
            0 if !all => Err(Errno::ENOENT),
            bytes => Ok(bytes),
        }
    }

    pub fn destroy(&mut self, id: u32) -> Result<(), Errno> {
        match self.objects.get(&id).ok_or(Errno::ENOENT)? {
            Object::Device(_) => return Err(Errno::EBUSY),
            Object::Ioas(ioas) if !ioas.domains.is_empty() => return Err(Errno::EBUSY),
            Object::Ioas(_) => {
                self.objects.remove(&id);
                self.vfio = self.vfio.filter(|vfio| *vfio != id);
            }
            Object::Hwpt(_) if self.links.values().any(|link| link.0 == id) => {
                return Err(Errno::EBUSY);
            }
            Object::Hwpt(_) => self.drop_hwpt(id),
        }
        Ok(())
    }

    fn drop_hwpt(&mut self, id: u32) {
        let Some(Object::Hwpt(hwpt)) = self.objects.remove(&id) else {
            panic!("no page table {id}");
        };
        let domains = self.ioas(hwpt.ioas).unwrap().domains.clone();
        let rest: Vec<u32> = domains.into_iter().filter(|domain| *domain != id).collect();
        let granules = rest.iter().map(|id| granule(self.hwpt(*id).unwrap().sizes));
        let coarsest = granules.max().unwrap_or(1);
        let ioas = self.ioas(hwpt.ioas).unwrap();
        ioas.domains = rest;
        ioas.reserved.retain(|range| range.0 != id);
        ioas.alignment = coarsest.max(if ioas.huge_pages { 1 } else { PAGE });
        if ioas.domains.is_empty() {
            for area in &mut ioas.areas {
                area.pin = None;
                area.dead.clear();
            }
        }
    }

    pub fn bind(&mut self, which: usize) -> u32 {
        self.insert(Object::Device(which))
    }

    pub fn close(&mut self, which: usize) {
        self.detach(which);
        let id = self.number(which);
        self.objects.remove(&id);
    }

    pub fn hwpt_alloc(&mut self, device: u32, pt: u32) -> Result<u32, Errno> {
        let Some(Object::Device(which)) = self.objects.get(&device) else {
            return Err(Errno::ENOENT);
        };
        let which = *which;
        match self.objects.get(&pt) {
            Some(Object::Ioas(_)) => self.new_hwpt(which, pt, false),
            Some(Object::Hwpt(_)) => Err(Errno::EOPNOTSUPP),
            _ => Err(Errno::EINVAL),
        }
    }

    fn new_hwpt(&mut self, which: usize, ioas_id: u32, auto: bool) -> Result<u32, Errno> {
        let sizes = PAGE_SIZES[which];
        let present = self.present.clone();
        let ioas = self.ioas(ioas_id)?;
        let alignment = granule(sizes).max(ioas.alignment);
        ioas.check_alignment(alignment)?;
        if ioas.domains.is_empty() {
            let mut pins = Vec::new();
            for area in &ioas.areas {
                let pin = Self::pin(
                    &present,
                    &area.memory,
                    area.offset,
                    area.length,
                    area.rights,
                )?;
                pins.push(pin);
            }
            for (area, pin) in ioas.areas.iter_mut().zip(pins) {
                area.pin = Some(pin);
            }
        }
        ioas.alignment = alignment;
        let id = self.insert(Object::Hwpt(Hwpt {
            ioas: ioas_id,
            sizes,
            auto,
        }));
        let ioas = self.ioas(ioas_id)?;
        ioas.domains.push(id);
        ioas.reserved.push((id, 1 << 48, u64::MAX));
        Ok(id)
    }

    pub fn attach(&mut self, which: usize, pt: u32) -> Result<u32, Errno> {
        match self.objects.get(&pt).ok_or(Errno::ENOENT)? {
            Object::Device(_) => Err(Errno::EINVAL),
            Object::Hwpt(_) => self.use_hwpt(which, pt).map(|()| pt),
            Object::Ioas(ioas) => {
                let domains = ioas.domains.clone();
                for domain in domains {
                    if !self.hwpt(domain).unwrap().auto {
                        continue;
                    }
                    match self.use_hwpt(which, domain) {
                        Ok(()) => return Ok(domain),
                        Err(Errno::EINVAL) => {}
                        Err(errno) => return Err(errno),
                    }
                }
                let link = self.links.get(&GROUPS[which]);
                let is_move = link.is_some_and(|link| link.1.contains(&which));
                if link.is_some() && !is_move {
                    return Err(Errno::EINVAL);
                }
                if !is_move {
                    self.check_reserved(pt, which)?;
                }
                let hwpt = self.new_hwpt(which, pt, true)?;
                if let Err(errno) = self.use_hwpt(which, hwpt) {
                    self.drop_hwpt(hwpt);
                    return Err(errno);
                }
                Ok(hwpt)
            }
        }
    }

    /// Whether the device's windows are free in the IOAS.
    fn check_reserved(&mut self, ioas: u32, which: usize) -> Result<(), Errno> {
        let ioas = self.ioas(ioas)?;
        let Some((first, last)) = RESERVED[which] else {
            return Ok(());
        };
        let allowed = ioas
            .allowed
            .iter()
            .any(|range| range.0 <= last && range.1 >= first);
        match allowed || ioas.is_mapped(first, last - first + 1) {
            true => Err(Errno::EADDRINUSE),
            false => Ok(()),
        }
    }

    fn use_hwpt(&mut self, which: usize, hwpt: u32) -> Result<(), Errno> {
        let group = GROUPS[which];
        let (before, attached) = match self.links.get(&group) {
            Some((before, attached)) => (Some(*before), attached.clone()),
            None => (None, Vec::new()),
        };
        let is_move = attached.contains(&which);
        if before.is_some_and(|before| before != hwpt) && !is_move {
            return Err(Errno::EINVAL);
        }
        if is_move && before == Some(hwpt) {
            return Ok(());
        }
        let (ioas, sizes) = self
            .hwpt(hwpt)
            .map(|table| (table.ioas, table.sizes))
            .unwrap();
        let old = before.map(|before| self.hwpt(before).unwrap().ioas);
        let newcomers = match is_move {
            true if old == Some(ioas) => Vec::new(),
            true => attached.clone(),
            false => vec![which],
        };
        for newcomer in &newcomers {
            self.check_reserved(ioas, *newcomer)?;
        }
        if sizes & !PAGE_SIZES[which] != 0 {
            return Err(Errno::EINVAL);
        }
        for newcomer in newcomers {
            let id = self.number(newcomer);
            if let Some(old) = old.filter(|_| is_move) {
                self.ioas(old)?.reserved.retain(|range| range.0 != id);
            }
            if let Some((first, last)) = RESERVED[newcomer] {
                self.ioas(ioas)?.reserved.push((id, first, last));
            }
        }
        let mut devices = attached;
        if !is_move {
            devices.push(which);
        }
        self.links.insert(group, (hwpt, devices));
        if let Some(before) = before.filter(|before| *before != hwpt) {
            self.put(before);
        }
        Ok(())
    }

    pub fn detach(&mut self, which: usize) {
        let group = GROUPS[which];
        let Some((hwpt, devices)) = self.links.get_mut(&group) else {
            return;
        };
        if !devices.contains(&which) {
            return;
        }
        devices.retain(|device| *device != which);
        let (hwpt, is_last) = (*hwpt, devices.is_empty());
        let id = self.number(which);
        let ioas = self.hwpt(hwpt).unwrap().ioas;
        self.ioas(ioas)
            .unwrap()
            .reserved
            .retain(|range| range.0 != id);
        if is_last {
            self.links.remove(&group);
            self.put(hwpt);
        }
    }

    fn put(&mut self, hwpt: u32) {
        let is_used = self.links.values().any(|link| link.0 == hwpt);
        if !is_used && self.hwpt(hwpt).unwrap().auto {
            self.drop_hwpt(hwpt);
        }
    }

    pub fn huge_pages(&mut self, id: u32, on: bool) -> Result<(), Errno> {
        let domains = self.ioas(id)?.domains.clone();
        let granules = domains
            .iter()
            .map(|id| granule(self.hwpt(*id).unwrap().sizes));
        let coarsest = granules.max().unwrap_or(1);
        let ioas = self.ioas(id)?;
        if on == ioas.huge_pages {
            return Ok(());
        }
        if !on {
            if !ioas.domains.is_empty() && !ioas.areas.is_empty() {
                return Err(Errno::EINVAL);
            }
            ioas.check_alignment(PAGE)?;
        }
        ioas.huge_pages = on;
        ioas.alignment = coarsest.max(if on { 1 } else { PAGE });
        Ok(())
    }

    pub fn allow(&mut self, id: u32, ranges: &[(u64, u64)]) -> Result<(), Errno> {
        let ioas = self.ioas(id)?;
        for (index, range) in ranges.iter().enumerate() {
            let earlier = &ranges[..index];
            if range.0 >= range.1
                || earlier
                    .iter()
                    .any(|one| one.0 <= range.1 && one.1 >= range.0)
            {
                return Err(Errno::EINVAL);
            }
        }
        if ranges
            .iter()
            .any(|range| ioas.is_reserved(range.0, (range.1 - range.0).saturating_add(1)))
        {
            return Err(Errno::EADDRINUSE);
        }
        ioas.allowed = ranges.to_vec();
        ioas.allowed.sort_unstable();
        Ok(())
    }

    pub fn all_ranges(&self) -> Vec<(u32, Ranges)> {
        let ioas = |(id, object): (&u32, &Object)| match object {
            Object::Ioas(ioas) => Some((*id, (ioas.ranges(), ioas.alignment))),
            _ => None,
        };
        self.objects.iter().filter_map(ioas).collect()
    }

    pub fn pinned_frames(&self) -> Vec<u64> {
        let mut frames = BTreeSet::new();
        for area in self.areas() {
            if let Some(pin) = &area.pin {
                let from = area.memory.start + pin.offset - HEAP;
                let to = from + pin.length - 1;
                frames.extend((from / PAGE..=to / PAGE).map(|page| 2000 + page));
            }
        }
        frames.into_iter().collect()
    }

    /// The byte that a device reaches with one of the rights.
    pub fn dma(&self, which: usize, iova: u64, right: u32) -> Option<u8> {
        let (hwpt, _) = self.links.get(&GROUPS[which])?;
        let Some(Object::Ioas(ioas)) = self.objects.get(&self.hwpt(*hwpt)?.ioas) else {
            return None;
        };
        let area = ioas
            .areas
            .iter()
            .find(|area| area.first <= iova && iova < area.end())?;
        let at = area.memory.start + area.offset + iova - area.first;
        let is_dead = area.dead.contains(&((at - HEAP) / PAGE));
        (area.rights & right != 0 && !is_dead).then(|| content(at))
    }
}

fn granule(sizes: u64) -> u64 {
    1 << sizes.trailing_zeros()
}
