//! The naive model of one IOAS: its areas and ranges as lists.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, Weak};

use iogate_uapi::Errno;

use crate::iommufd_world::PAGE;
use crate::model::UNIT;

pub struct Pin {
    pub offset: u64,
    pub length: u64,
    pub rights: u32,
}

/// The memory that one MAP named.
pub struct Memory {
    pub start: u64,
    pub rights: u32,
    pub pins: Mutex<Vec<Weak<Pin>>>,
}

#[derive(Clone)]
pub struct Area {
    pub first: u64,
    pub length: u64,
    pub memory: Arc<Memory>,
    pub offset: u64,
    pub rights: u32,
    pub pin: Option<Arc<Pin>>,
    /// Pages of the program that went while this was pinned.
    pub dead: BTreeSet<u64>,
}

impl Area {
    pub fn end(&self) -> u64 {
        self.first + self.length
    }
}

pub struct Ioas {
    pub areas: Vec<Area>,
    pub reserved: Vec<(u32, u64, u64)>,
    pub allowed: Vec<(u64, u64)>,
    pub alignment: u64,
    pub huge_pages: bool,
    pub domains: Vec<u32>,
}

impl Ioas {
    pub fn is_reserved(&self, first: u64, length: u64) -> bool {
        let mut reserved = self.reserved.iter();
        reserved.any(|range| range.1 < first + length && range.2 >= first)
    }

    pub fn is_mapped(&self, first: u64, length: u64) -> bool {
        let mut areas = self.areas.iter();
        areas.any(|area| area.first < first + length && area.end() > first)
    }

    pub fn check_alignment(&self, alignment: u64) -> Result<(), Errno> {
        let misfits = |area: &Area| {
            [area.first, area.length, area.memory.start + area.offset]
                .iter()
                .any(|number| !number.is_multiple_of(alignment))
        };
        match self.areas.iter().any(misfits) {
            true => Err(Errno::EADDRINUSE),
            false => Ok(()),
        }
    }

    pub fn find(&self, start: u64, length: u64) -> Result<u64, Errno> {
        let alignment = length
            .next_power_of_two()
            .min(1 << start.trailing_zeros())
            .min(2 << 20);
        if alignment < self.alignment {
            return Err(Errno::EINVAL);
        }
        let offset = start % PAGE;
        let step = if offset == 0 { alignment } else { PAGE };
        let everything = [(0, u64::MAX - PAGE)];
        let windows = match &self.allowed[..] {
            [] => &everything[..],
            allowed => allowed,
        };
        for window in windows {
            let mut at = PAGE;
            while at < 64 << 20 && at + length - 1 <= window.1 {
                let suits = at >= window.0 && at % step == offset % step;
                if suits && !self.is_reserved(at, length) && !self.is_mapped(at, length) {
                    return Ok(at);
                }
                at += UNIT;
            }
        }
        Err(Errno::ENOSPC)
    }

    pub fn ranges(&self) -> Vec<(u64, u64)> {
        let mut edges: Vec<u64> = vec![0];
        edges.extend(
            self.reserved
                .iter()
                .flat_map(|range| [range.1, range.2.wrapping_add(1)]),
        );
        edges.sort_unstable();
        edges.dedup();
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for (index, first) in edges.iter().enumerate() {
            let last = edges.get(index + 1).map_or(u64::MAX, |next| next - 1);
            let reserved = |range: &(u32, u64, u64)| range.1 <= *first && last <= range.2;
            if self.reserved.iter().any(reserved) {
                continue;
            }
            match ranges.last_mut() {
                Some(before) if before.1 + 1 == *first => before.1 = last,
                _ => ranges.push((*first, last)),
            }
        }
        ranges
    }
}
