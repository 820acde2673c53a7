//! Whatever a guest and listeners do, what listeners have is what the guest's
//! tables say, page by page.

mod support;

use std::sync::Arc;

use iogate_dma::{Change, Invalidated, Iova, Scope, Span};
use iogate_shadow::{Following, Limits, Section, Shadow};
use proptest::prelude::*;
use support::{Device, Unit, source, span};

/// Entries of a table that are used: neighbours, and both ends.
const USED: [u64; 6] = [0, 1, 2, 3, 510, 511];
/// Pages of tables; a domain's root is one of the first two.
const TABLES: u64 = 8;
const SOURCES: u16 = 3;

/// One entry of a table: what it leads to and allows.
#[derive(Clone, Copy, Debug)]
struct Edit {
    table: u64,
    index: u64,
    entry: u64,
}

#[derive(Clone, Debug)]
enum Step {
    /// Entries change, and the guest invalidates all of it.
    Edit(Vec<Edit>),
    /// One entry of the lowest table at this place changes, and the guest
    /// invalidates exactly its pages.
    Page {
        source: u16,
        at: [u64; 3],
        entry: u64,
    },
    /// A context entry changes.
    Enter {
        source: u16,
        context: Option<(u64, u32)>,
    },
    /// Nothing changed.
    Nothing,
    /// A listener refuses one change in so many.
    Refuse {
        device: usize,
        one_in: u32,
    },
    Accept {
        device: usize,
    },
    Replay {
        device: usize,
    },
    Resync {
        device: usize,
        first: u64,
        pages: u64,
    },
    /// A listener goes, and comes again with another section.
    Again {
        device: usize,
        source: u16,
        section: Option<(u64, u64)>,
    },
}

fn index() -> impl Strategy<Value = u64> {
    prop::sample::select(&USED[..])
}

fn entry() -> impl Strategy<Value = u64> {
    let rights = 0..4_u64;
    prop_oneof![
        2 => Just(0),
        // A table, or a page that is close to others.
        4 => (0..TABLES, rights.clone()).prop_map(|(table, rights)| table << 12 | rights),
        4 => (0..16_u64, rights.clone()).prop_map(|(page, rights)| page << 12 | rights),
        2 => (0..4_u64, rights).prop_map(|(page, rights)| page << 30 | 0x80 | rights),
    ]
}

fn edit() -> impl Strategy<Value = Edit> {
    (0..TABLES, index(), entry()).prop_map(|(table, index, entry)| Edit {
        table,
        index,
        entry,
    })
}

/// A page that is looked at: any combination of the used entries.
fn page() -> impl Strategy<Value = u64> {
    (index(), index(), index()).prop_map(|(a, b, c)| a << 30 | b << 21 | c << 12)
}

fn step() -> impl Strategy<Value = Step> {
    let device = 0..4_usize;
    let context = prop::option::weighted(0.9, (0..2_u64, 0..2_u32));
    let section = prop::option::of((page(), page()));
    prop_oneof![
        6 => prop::collection::vec(edit(), 1..4).prop_map(Step::Edit),
        6 => (0..SOURCES, [index(), index(), index()], entry())
            .prop_map(|(source, at, entry)| Step::Page { source, at, entry }),
        3 => (0..SOURCES, context).prop_map(|(source, context)| Step::Enter {
            source,
            context: context.map(|(root, number)| (root << 12, number)),
        }),
        1 => Just(Step::Nothing),
        4 => (device.clone(), 1..5_u32)
            .prop_map(|(device, one_in)| Step::Refuse { device, one_in }),
        2 => device.clone().prop_map(|device| Step::Accept { device }),
        1 => device.clone().prop_map(|device| Step::Replay { device }),
        1 => (device.clone(), 0..16_u64, 1..16_u64)
            .prop_map(|(device, first, pages)| Step::Resync { device, first, pages }),
        2 => (device, 0..SOURCES, section).prop_map(|(device, source, section)| Step::Again {
            device,
            source,
            section,
        }),
    ]
}

/// One listener of the test, and what it follows.
struct Listening {
    device: Arc<Device>,
    source: u16,
    section: Span<Iova>,
    following: Option<Following>,
    accepts: bool,
}

struct World {
    unit: Arc<Unit>,
    shadow: Arc<Shadow>,
    listening: Vec<Listening>,
}

impl World {
    fn new() -> Self {
        let unit = Unit::new(TABLES as usize);
        let limits = Limits {
            runs: 1 << 14,
            tables: 1 << 16,
        };
        let shadow = Shadow::with_limits(unit.clone(), limits);
        let mut world = Self {
            unit,
            shadow,
            listening: Vec::new(),
        };
        // Two that share a source's space between them, and two devices.
        let half = 1 << 30;
        let sections = [(0, span(0, half - 1)), (0, span(half, u64::MAX))];
        let wholes = [(1, Span::whole()), (2, Span::whole())];
        for (source, section) in sections.into_iter().chain(wholes) {
            let mut listening = Listening {
                device: Device::new(),
                source,
                section,
                following: None,
                accepts: true,
            };
            world.follow(&mut listening);
            world.listening.push(listening);
        }
        world
    }

    fn follow(&self, listening: &mut Listening) {
        let (source, section) = (source(listening.source), Section::from(listening.section));
        let following = self
            .shadow
            .follow(source, section, listening.device.clone());
        listening.following = Some(following.unwrap());
    }

    /// Where the guest's table for `at` is, if there is one.
    fn lowest(&self, number: u16, at: [u64; 3]) -> Option<u64> {
        let (mut table, _) = self.unit.context(source(number))?;
        for index in &at[..2] {
            let entry = self.unit.memory.get(table + index * 8);
            if entry & 3 == 0 || entry & 0x80 != 0 {
                return None;
            }
            table = entry & 0x000f_ffff_ffff_f000;
        }
        (table < TABLES << 12).then_some(table)
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Edit(edits) => {
                for Edit {
                    table,
                    index,
                    entry,
                } in edits
                {
                    self.unit.memory.set(table << 12 | index << 3, *entry);
                }
                self.unit.invalidate_all();
            }
            Step::Page { source, at, entry } => {
                let Some(table) = self.lowest(*source, *at) else {
                    return;
                };
                self.unit.memory.set(table | at[2] << 3, *entry);
                self.invalidate_users(table | at[2] << 3);
            }
            Step::Enter {
                source: number,
                context,
            } => {
                self.unit.enter(source(*number), *context);
                self.unit
                    .invalidate_one(Scope::Entry(source(*number)), Span::whole());
            }
            Step::Nothing => {
                let told = |world: &Self| {
                    let batches = world.listening.iter().map(|one| one.device.take());
                    batches.map(|batches| batches.len()).collect::<Vec<_>>()
                };
                told(self);
                self.unit.invalidate_all();
                let told = told(self);
                for (one, told) in self.listening.iter().zip(told) {
                    let failure = one.following.as_ref().unwrap().failure();
                    assert!(told == 0 || failure.is_some() || !one.accepts);
                }
            }
            Step::Refuse { device, one_in } => {
                let (mut asked, one_in) = (0, *one_in);
                self.listening[*device].accepts = false;
                self.listening[*device].device.refuse(move |change| {
                    asked += 1;
                    let errno = if matches!(change, Change::Map(_)) {
                        28
                    } else {
                        5
                    };
                    (asked % one_in == 0).then_some(errno)
                });
            }
            Step::Accept { device } => {
                self.listening[*device].accepts = true;
                self.listening[*device].device.accept();
                self.unit.invalidate_all();
            }
            Step::Replay { device } => {
                let one = &self.listening[*device];
                one.device.forget();
                one.following.as_ref().unwrap().replay();
            }
            Step::Resync {
                device,
                first,
                pages,
            } => {
                let outputs = Span::with_length(iogate_dma::Gpa(first << 12), pages << 12);
                let one = &self.listening[*device];
                one.following.as_ref().unwrap().resync(outputs.unwrap());
            }
            Step::Again {
                device,
                source,
                section,
            } => {
                let mut one = self.listening.remove(*device);
                one.following = None;
                if one.accepts {
                    assert_eq!(*one.device.mapped.lock().unwrap(), []);
                }
                one.device.forget();
                one.source = *source;
                one.section =
                    section.map_or_else(Span::whole, |(a, b)| span(a.min(b), a.max(b) | 0xfff));
                self.follow(&mut one);
                self.listening.insert(*device, one);
            }
        }
    }

    /// The guest invalidates the pages that the entry at `address` maps, in
    /// every domain that uses it as an entry for a page; where it is a table
    /// for larger things too, everything.
    fn invalidate_users(&self, address: u64) {
        let mut batch = Vec::new();
        let mut is_larger = false;
        for number in 0..SOURCES {
            let Some((root, domain)) = self.unit.context(source(number)) else {
                continue;
            };
            is_larger |= address & !0xfff == root;
            for upper in 0..512 * 512_u64 {
                let at = [upper >> 9, upper & 511, address >> 3 & 511];
                if !USED.contains(&at[0]) || !USED.contains(&at[1]) {
                    continue;
                }
                let middle = self.unit.memory.get(root + at[0] * 8) & 0x000f_ffff_ffff_f000;
                is_larger |= middle == address & !0xfff;
                if self.lowest(number, at) == Some(address & !0xfff) {
                    let first = at[0] << 30 | at[1] << 21 | at[2] << 12;
                    let (scope, span) = (Scope::Domain(domain), span(first, first | 0xfff));
                    batch.push(Invalidated { scope, span });
                }
            }
        }
        if is_larger {
            self.unit.invalidate_all();
        } else {
            self.unit.invalidate(&batch);
        }
    }

    fn check(&self) {
        for one in &self.listening {
            let failure = one.following.as_ref().unwrap().failure();
            assert!(failure.is_none() || !one.accepts);
            for a in USED {
                for b in USED {
                    for c in USED {
                        let iova = a << 30 | b << 21 | c << 12;
                        let mut expected = self.unit.page(source(one.source), iova);
                        if !one.section.contains(Iova(iova)) {
                            expected = None;
                        }
                        let has = one.device.page(iova);
                        assert!(
                            has == expected || failure.is_some(),
                            "{iova:#x}: {has:x?} {expected:x?}"
                        );
                    }
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn listeners_have_what_the_tables_say(steps in prop::collection::vec(step(), 1..40)) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
            world.check();
        }
        for device in 0..world.listening.len() {
            world.step(&Step::Accept { device });
        }
        world.check();
    }
}
