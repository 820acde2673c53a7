//! Structures as guests make them, valid ones and invalid ones: root, context and PASID entries and tables of every shape.

use super::choices::Choices;
use super::memory::Plain;
use super::tables::mask;
use super::translate::{Access, Question, translate};
use super::unit::Unit;

/// Where memory is, the same everywhere: tables, what devices may write, zeros, and from `HOLE` on nothing.
pub(crate) const TABLES: u64 = 0x1000_0000;
pub(crate) const DATA: u64 = 0x1100_0000;
pub(crate) const DATA_END: u64 = 0x1200_0000;
pub(crate) const MEMORY_END: u64 = 0x2000_0000;
pub(crate) const HOLE: u64 = 0x3000_0000;

/// The bits of an input address below 1 GiB: they lie in `DATA`, so that identical pages of 1 GiB lead there.
const OFFSETS: [u64; 6] = [
    0x1100_0000,
    0x1100_1000,
    0x111f_f000,
    0x1120_0000,
    0x1134_5000,
    0x11ff_f000,
];

/// What a requester may ask for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) source: u16,
    pub(crate) pasid: Option<u32>,
    pub(crate) address: u64,
}

/// What an entry in memory is, so that an edit and the invalidation after it fit it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Root,
    Context,
    Directory,
    Pasid,
    /// An entry of a table, at this level.
    Table(u32),
}

/// Memory with structures, and what is worth asking.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) unit: Unit,
    pub(crate) memory: Plain,
    /// What to write to RTADDR_REG.
    pub(crate) root: u64,
    pub(crate) places: Vec<Place>,
    /// Words of the structures, with what they were made to be.
    pub(crate) entries: Vec<(u64, Kind, u64)>,
    next: u64,
}

/// How much is wrong: chances of 256, for each entry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Malice {
    pub(crate) spoil: u8,
    /// A table that is another one, or nowhere.
    pub(crate) astray: u8,
}

impl Malice {
    pub(crate) const NONE: Self = Self {
        spoil: 0,
        astray: 0,
    };
    pub(crate) const SOME: Self = Self {
        spoil: 6,
        astray: 4,
    };
}

/// Memory as every world has it.
pub(crate) fn memory() -> Plain {
    Plain::new(&[(TABLES, MEMORY_END)])
}

impl World {
    /// Structures for `sources` in the mode `scalable` or legacy.
    pub(crate) fn build(
        choices: &mut Choices<'_>,
        unit: &Unit,
        sources: &[u16],
        scalable: bool,
        malice: Malice,
    ) -> Self {
        let mut world = Self {
            unit: *unit,
            memory: memory(),
            root: 0,
            places: Vec::new(),
            entries: Vec::new(),
            // The first page is aligned to every size: left out.
            next: TABLES + 0x1000,
        };
        let root = world.fresh();
        world.root = root | if scalable { 1 << 10 } else { 0 };
        let domains: Vec<u64> = (0..1 + choices.below(3)).collect();
        let mut stages = Vec::new();
        for _ in &domains {
            stages.push(Stages::build(choices, &mut world, scalable, malice));
        }
        for &source in sources {
            let devfn = u64::from(source & 0xff);
            let half = if scalable && devfn >= 0x80 { 8 } else { 0 };
            let root_at = root + 16 * u64::from(source >> 8) + half;
            let context = match world.memory.word(root_at) {
                Some(0) | None => world.fresh(),
                Some(entry) => entry & mask(12, 38),
            };
            world.put(choices, root_at, context | 1, Kind::Root, malice);
            let number = choices.below(stages.len() as u64) as usize;
            let stage = &stages[number];
            if scalable {
                world.scalable(choices, source, context, stage, malice);
            } else {
                world.legacy(choices, source, context, stage, malice);
            }
        }
        world
    }

    fn fresh(&mut self) -> u64 {
        let page = self.next;
        self.next += 0x1000;
        assert!(page < DATA, "more tables than there is room for");
        page
    }

    /// A table: a new one, or, rarely, one that is there or nowhere.
    fn table(&mut self, choices: &mut Choices<'_>, malice: Malice) -> u64 {
        if choices.rarely(malice.astray) {
            match choices.below(3) {
                0 => return HOLE + 0x1000 * choices.below(256),
                1 if self.next > TABLES + 0x2000 => {
                    let pages = (self.next - TABLES) / 0x1000 - 1;
                    return TABLES + 0x1000 * (1 + choices.below(pages));
                }
                _ => {}
            }
        }
        self.fresh()
    }

    /// Writes an entry, perhaps a spoilt one.
    fn put(&mut self, choices: &mut Choices<'_>, at: u64, entry: u64, kind: Kind, malice: Malice) {
        if !self.memory.is_there(at) || at >= DATA {
            return;
        }
        self.entries.push((at, kind, entry));
        let entry = if choices.rarely(malice.spoil) {
            spoil(choices, entry, self.unit.host_bits)
        } else {
            entry
        };
        self.memory.set(at, entry);
    }

    fn legacy(
        &mut self,
        choices: &mut Choices<'_>,
        source: u16,
        context: u64,
        stage: &Stages,
        malice: Malice,
    ) {
        let at = context + 16 * u64::from(source & 0xff);
        let kind = match choices.below(16) {
            0..=1 if self.unit.pass_through => 2,
            2 if self.unit.device_tlb => 1,
            3 => choices.below(4),
            _ => 0,
        };
        let silent = u64::from(choices.rarely(24)) << 1;
        let low = stage.second | kind << 2 | silent | 1;
        let high = u64::from(stage.id) << 8 | stage.width;
        self.put(choices, at, low, Kind::Context, malice);
        self.put(choices, at + 8, high, Kind::Context, malice);
        for &address in &stage.second_places {
            self.places.push(Place {
                source,
                pasid: None,
                address,
            });
        }
    }

    fn scalable(
        &mut self,
        choices: &mut Choices<'_>,
        source: u16,
        context: u64,
        stage: &Stages,
        malice: Malice,
    ) {
        let unit = self.unit;
        let at = context + 32 * u64::from(source & 0x7f);
        let directory = self.table(choices, malice);
        let rid_pasid = if unit.rid_pasid && choices.rarely(64) {
            1 + choices.below(130)
        } else {
            0
        };
        let with_pasid = unit.pasid_bits > 0;
        let silent = u64::from(choices.rarely(16)) << 1;
        let pages = choices.below(2) << 9;
        let low = directory | pages | u64::from(with_pasid) << 3 | silent | 1;
        self.put(choices, at, low, Kind::Context, malice);
        self.put(choices, at + 8, rid_pasid, Kind::Context, malice);
        let mut pasids = vec![(rid_pasid, None)];
        if with_pasid {
            for _ in 0..choices.below(3) {
                let pasid = choices.one_of(&[0, 1, 63, 64, 77, 8191]);
                pasids.push((pasid, Some(pasid as u32)));
            }
        }
        for (pasid, named) in pasids {
            let entry_at = directory + 8 * (pasid >> 6);
            let table = match self.memory.word(entry_at) {
                Some(0) | None => self.table(choices, malice),
                Some(entry) => entry & mask(12, 38),
            };
            let silent = u64::from(choices.rarely(16)) << 1;
            self.put(
                choices,
                entry_at,
                table | silent | 1,
                Kind::Directory,
                malice,
            );
            self.pasid(choices, table + 64 * (pasid & 63), stage, malice);
            for &address in stage.first_places.iter().chain(&stage.second_places) {
                self.places.push(Place {
                    source,
                    pasid: named,
                    address,
                });
            }
        }
    }

    fn pasid(&mut self, choices: &mut Choices<'_>, at: u64, stage: &Stages, malice: Malice) {
        let unit = self.unit;
        let mut kinds = Vec::new();
        if unit.first_stage {
            kinds.extend([1, 1, 1]);
        }
        if unit.second_stage {
            kinds.extend([2, 2, 2]);
        }
        if unit.nested {
            kinds.extend([3, 3]);
        }
        if unit.pass_through {
            kinds.push(4);
        }
        let mut kind = choices.one_of(&kinds);
        if choices.rarely(malice.spoil) {
            kind = choices.below(8);
        }
        let silent = u64::from(choices.rarely(16)) << 1;
        let accessed = u64::from(unit.second_accessed && choices.rarely(128)) << 9;
        let word = stage.second | accessed | kind << 6 | stage.width << 2 | silent | 1;
        let first = if kind == 3 { stage.nested } else { stage.first };
        let supervisor = u64::from(choices.rarely(128));
        // WPE and NXE at will, EAFE where it is.
        let bits = choices.below(4) << 4
            | u64::from(unit.extended_accessed && choices.rarely(128)) << 7
            | if unit.supervisor_requests {
                supervisor
            } else {
                0
            };
        let levels = u64::from(stage.five) << 2;
        self.put(choices, at, word, Kind::Pasid, malice);
        self.put(choices, at + 8, u64::from(stage.id), Kind::Pasid, malice);
        self.put(choices, at + 16, first | levels | bits, Kind::Pasid, malice);
    }

    /// A question: mostly about what is mapped.
    pub(crate) fn question(&self, choices: &mut Choices<'_>) -> Question {
        let mut place = Place {
            source: 0,
            pasid: None,
            address: 0,
        };
        if !self.places.is_empty() {
            place = choices.one_of(&self.places);
        }
        let mut address = place.address + (choices.below(32) << 7);
        match choices.below(16) {
            0 => address ^= 1 << (12 + choices.below(52)),
            1 => address = address.wrapping_add(0x1000),
            2 => address ^= 1 << (12 + choices.below(20)),
            _ => {}
        }
        let access = if choices.below(2) == 0 {
            Access::Read
        } else {
            Access::Write
        };
        Question {
            source: place.source,
            pasid: place.pasid,
            address,
            access,
            privileged: false,
        }
    }

    /// Changes one entry, mostly one on the way of a question; returns what it was.
    pub(crate) fn edit(
        &mut self,
        choices: &mut Choices<'_>,
        near: Option<&Question>,
    ) -> Option<(u64, Kind)> {
        let mut entries = self.entries.clone();
        if let Some(near) = near.filter(|_| choices.below(4) != 0) {
            self.memory.visited.replace(Some(Vec::new()));
            translate(&self.unit, &self.memory, near);
            let visited = self.memory.visited.take().unwrap_or_default();
            entries.retain(|(at, ..)| visited.contains(at));
        }
        if entries.is_empty() {
            return None;
        }
        let (at, kind, made) = choices.one_of(&entries);
        let now = self.memory.word(at)?;
        let new = match choices.below(6) {
            0 => 0,
            1 | 2 => made,
            3 => spoil(choices, made, self.unit.host_bits),
            4 if matches!(kind, Kind::Table(1)) => {
                made & !mask(12, 51) | (DATA + 0x1000 * choices.below(64))
            }
            // Other rights.
            _ => made ^ 1 << choices.below(2),
        };
        if new == now {
            return None;
        }
        self.memory.set(at, new);
        Some((at, kind))
    }
}

/// An entry with something wrong: a bit, a field, everything.
fn spoil(choices: &mut Choices<'_>, entry: u64, host_bits: u32) -> u64 {
    match choices.below(8) {
        0 => entry ^ 1 << choices.below(3),
        1 => entry ^ 1 << choices.below(12),
        2 => entry ^ 1 << (u64::from(host_bits) + choices.below(64 - u64::from(host_bits))),
        3 => entry | 1 << 7,
        4 => entry & !mask(12, 51) | HOLE,
        5 => entry & !mask(12, 51) | 0xfee0_0000,
        6 => 0,
        _ => entry ^ 1 << choices.below(64),
    }
}

/// The tables of one domain.
struct Stages {
    id: u16,
    /// AW.
    width: u64,
    second: u64,
    first: u64,
    /// A first stage whose tables the second one finds, for nesting.
    nested: u64,
    five: bool,
    second_places: Vec<u64>,
    first_places: Vec<u64>,
}

impl Stages {
    fn build(choices: &mut Choices<'_>, world: &mut World, scalable: bool, malice: Malice) -> Self {
        let unit = world.unit;
        let widths: Vec<u64> = (1..=3)
            .filter(|width| unit.widths >> width & 1 != 0)
            .collect();
        let width = choices.one_of(&widths);
        let mut stages = Self {
            id: (1 + choices.below(5)) as u16,
            width,
            second: world.table(choices, malice),
            first: 0,
            nested: 0,
            five: unit.first_5_levels && choices.rarely(64),
            second_places: Vec::new(),
            first_places: Vec::new(),
        };
        let levels = width as u32 + 2;
        let bits = unit.guest_bits.min(12 + 9 * levels);
        for _ in 0..2 + choices.below(6) {
            let address = input(choices, bits);
            second(choices, world, stages.second, levels, address, malice);
            stages.second_places.push(address);
        }
        if scalable && unit.first_stage {
            let levels = if stages.five { 5 } else { 4 };
            stages.first = world.table(choices, malice);
            for _ in 0..2 + choices.below(6) {
                let address = canonical(choices, 12 + 9 * levels);
                first(choices, world, stages.first, levels, address, malice);
                stages.first_places.push(address);
            }
            stages.nested = stages.first;
        }
        if scalable && unit.nested {
            // The second stage maps the tables by 2 MiB as they are, readable and writable.
            let mut table = stages.second;
            for level in (3..=levels).rev() {
                let at = table + 8 * (TABLES >> (12 + 9 * (level - 1)) & 0x1ff);
                let next = match world.memory.word(at) {
                    Some(entry) if entry & 3 != 0 => entry & mask(12, 38),
                    _ => world.fresh(),
                };
                world.put(choices, at, next | 3, Kind::Table(level), Malice::NONE);
                table = next;
            }
            for n in 0..16 {
                let address = TABLES + n * 0x20_0000;
                let at = table + 8 * (address >> 21 & 0x1ff);
                world.put(choices, at, address | 1 << 7 | 3, Kind::Table(2), malice);
            }
        }
        stages
    }
}

/// An input address of a stage with so many bits.
fn input(choices: &mut Choices<'_>, bits: u32) -> u64 {
    let low = choices.one_of(&OFFSETS);
    let high = match choices.below(4) {
        0 => 0,
        1 => mask(30, bits - 1),
        2 => 1 << 30,
        _ => (choices.below(256) << 30 | choices.below(256) << 39) & mask(30, bits - 1),
    };
    high | low
}

fn canonical(choices: &mut Choices<'_>, bits: u32) -> u64 {
    let address = input(choices, bits);
    if address >> (bits - 1) & 1 != 0 {
        address | mask(bits, 63)
    } else {
        address
    }
}

/// Where a leaf leads: data mostly; the level says the alignment.
fn output(choices: &mut Choices<'_>, level: u32) -> u64 {
    if choices.rarely(6) {
        return choices.one_of(&[HOLE, 0xfee0_0000, 0x4000_0000])
            & !mask(0, 12 + 9 * (level - 1) - 1);
    }
    match level {
        1 => DATA + 0x1000 * choices.below(4096),
        2 => DATA + 0x20_0000 * choices.below(8),
        _ => 0,
    }
}

/// The lowest level of a path: 4 KiB mostly.
fn leaf_level(choices: &mut Choices<'_>, top: u32) -> u32 {
    match choices.below(16) {
        0..=3 => 2,
        4 | 5 => 3,
        6 => top.min(4),
        _ => 1,
    }
}

fn second(
    choices: &mut Choices<'_>,
    world: &mut World,
    root: u64,
    levels: u32,
    address: u64,
    malice: Malice,
) {
    let leaf = leaf_level(choices, levels);
    let mut table = root;
    for level in (leaf..=levels).rev() {
        let at = table + 8 * (address >> (12 + 9 * (level - 1)) & 0x1ff);
        let rights = match choices.below(12) {
            0 => 1,
            1 => 2,
            _ => 3,
        };
        // Ignored bits, and SNP where it is.
        let extra = if choices.rarely(32) {
            choices.below(256) << 52 & mask(52, 61)
        } else {
            0
        } | if choices.rarely(16) { 1 << 2 } else { 0 }
            | if world.unit.snoop && level == leaf && choices.rarely(32) {
                1 << 11
            } else {
                0
            };
        if level == leaf {
            let size = if level > 1 { 1 << 7 } else { 0 };
            let page = output(choices, level);
            world.put(
                choices,
                at,
                page | extra | size | rights,
                Kind::Table(level),
                malice,
            );
            return;
        }
        let Some(next) = below(choices, world, at, 3, malice) else {
            return;
        };
        world.put(
            choices,
            at,
            next | extra | rights,
            Kind::Table(level),
            malice,
        );
        table = next;
    }
}

fn first(
    choices: &mut Choices<'_>,
    world: &mut World,
    root: u64,
    levels: u32,
    address: u64,
    malice: Malice,
) {
    let leaf = leaf_level(choices, levels);
    let mut table = root;
    for level in (leaf..=levels).rev() {
        let at = table + 8 * (address >> (12 + 9 * (level - 1)) & 0x1ff);
        // Present, writable and of a user, mostly.
        let rights = match choices.below(16) {
            0 => 5,
            1 => 3,
            _ => 7,
        };
        let extra = if choices.rarely(32) {
            choices.below(256) << 52 & mask(52, 62)
        } else {
            0
        } | if choices.rarely(16) { 1 << 63 } else { 0 }
            | if choices.rarely(32) {
                1 << (3 + choices.below(2))
            } else {
                0
            }
            | if choices.rarely(32) { 1 << 5 } else { 0 };
        if level == leaf {
            let size = if level > 1 { 1 << 7 } else { 0 };
            let page = output(choices, level);
            world.put(
                choices,
                at,
                page | extra | size | rights,
                Kind::Table(level),
                malice,
            );
            return;
        }
        let Some(next) = below(choices, world, at, 1, malice) else {
            return;
        };
        world.put(
            choices,
            at,
            next | extra | rights,
            Kind::Table(level),
            malice,
        );
        table = next;
    }
}

/// The table below the entry at `at`: the one that is there, or a new one; `None` if a page or nothing usable is there.
fn below(
    choices: &mut Choices<'_>,
    world: &mut World,
    at: u64,
    present: u64,
    malice: Malice,
) -> Option<u64> {
    match world.memory.word(at) {
        None => None,
        Some(entry) if entry & present == 0 => Some(world.table(choices, malice)),
        Some(entry) if entry & 1 << 7 != 0 => None,
        Some(entry) => {
            let table = entry & mask(12, 38);
            (world.memory.is_there(table) && table < DATA).then_some(table)
        }
    }
}
