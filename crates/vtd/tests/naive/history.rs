//! What may still be cached: the states of memory one after another, and what was invalidated between them. An answer is
//! right if states since the last invalidation of each kind explain it. VT-d 4.1 section 6.2.

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::choices::Choices;
use super::generate::{Kind, World};
use super::memory::Plain;
use super::translate::{Answer, How, Question, domain, through};
use super::unit::Unit;

/// An invalidation, as a descriptor asks for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Event {
    ContextGlobal,
    ContextDomain {
        domain: u16,
    },
    ContextDevice {
        domain: u16,
        source: u16,
        mask: u16,
    },
    PasidGlobal,
    PasidDomain {
        domain: u16,
    },
    PasidOne {
        domain: u16,
        pasid: u32,
    },
    IotlbGlobal,
    IotlbDomain {
        domain: u16,
    },
    /// Pages of `1 << order` times 4 KiB at `address`.
    IotlbPages {
        domain: u16,
        address: u64,
        order: u32,
    },
    PasidIotlb {
        domain: u16,
        pasid: u32,
    },
    PasidIotlbPages {
        domain: u16,
        pasid: u32,
        address: u64,
        order: u32,
    },
}

impl Event {
    /// One that may have to do with the question, or not.
    pub(crate) fn choose(choices: &mut Choices<'_>, history: &History, near: &Question) -> Self {
        let scalable = history.unit.root >> 10 & 3 == 1;
        // Of any moment: what is cached is not only of now.
        let moment = &history.moments[choices.below(history.moments.len() as u64) as usize];
        let found = super::translate::domain(&history.unit, &moment.memory, near);
        let domain = match found {
            Ok(domain) if choices.below(4) != 0 => domain.id,
            _ => (1 + choices.below(5)) as u16,
        };
        let pasid = history.tag(&moment.memory, near);
        let order = choices.one_of(&[0, 0, 1, 3, 9, 18]);
        let address = near.address & !((0x1000 << order) - 1);
        match choices.below(if scalable { 12 } else { 7 }) {
            0 => Self::ContextGlobal,
            1 if !scalable => Self::ContextDomain { domain },
            1 | 2 => Self::ContextDevice {
                // Scalable entries have no domain.
                domain: if scalable { 0 } else { domain },
                source: near.source,
                mask: choices.one_of(&[0, 1, 3, 7]),
            },
            3 => Self::IotlbGlobal,
            4 => Self::IotlbDomain { domain },
            5 | 6 => Self::IotlbPages {
                domain,
                address,
                order,
            },
            7 => Self::PasidGlobal,
            8 => Self::PasidDomain { domain },
            9 => Self::PasidOne { domain, pasid },
            10 => Self::PasidIotlb { domain, pasid },
            _ => Self::PasidIotlbPages {
                domain,
                pasid,
                address,
                order,
            },
        }
    }

    /// Its descriptor. VT-d 4.1 section 6.5.2.
    pub(crate) fn descriptor(&self) -> [u64; 2] {
        let did = |domain: u16| u64::from(domain) << 16;
        let tag = |pasid: u32| u64::from(pasid) << 32;
        match *self {
            Self::ContextGlobal => [0x11, 0],
            Self::ContextDomain { domain } => [0x21 | did(domain), 0],
            Self::ContextDevice {
                domain,
                source,
                mask,
            } => {
                let function_mask = match mask {
                    0 => 0,
                    1 => 1,
                    3 => 2,
                    _ => 3,
                };
                [
                    0x31 | did(domain) | u64::from(source) << 32 | function_mask << 48,
                    0,
                ]
            }
            Self::IotlbGlobal => [0x12, 0],
            Self::IotlbDomain { domain } => [0x22 | did(domain), 0],
            Self::IotlbPages {
                domain,
                address,
                order,
            } => [0x32 | did(domain), address | u64::from(order)],
            Self::PasidGlobal => [0x37, 0],
            Self::PasidDomain { domain } => [0x07 | did(domain), 0],
            Self::PasidOne { domain, pasid } => [0x17 | did(domain) | tag(pasid), 0],
            Self::PasidIotlb { domain, pasid } => [0x26 | did(domain) | tag(pasid), 0],
            Self::PasidIotlbPages {
                domain,
                pasid,
                address,
                order,
            } => [0x36 | did(domain) | tag(pasid), address | u64::from(order)],
        }
    }
}

/// Memory from one edit or invalidation to the next.
#[derive(Clone)]
struct Moment {
    memory: Plain,
    /// How often root and context entries, and how often PASID structures, were edited before.
    context: usize,
    pasid: usize,
}

/// Everything that was, since everything was invalidated last.
pub(crate) struct History {
    unit: Unit,
    kinds: BTreeMap<u64, Kind>,
    moments: Vec<Moment>,
    /// With which moment each begins: what is older is gone.
    events: Vec<(usize, Event)>,
    /// What older states asked for and is not there.
    pub(crate) missed: RefCell<Vec<u64>>,
}

/// The moments that the pieces of a cached answer are from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    context: usize,
    pasid: usize,
    tables: usize,
}

impl History {
    /// From now on, with nothing cached.
    pub(crate) fn new(world: &World) -> Self {
        let moment = Moment {
            memory: world.memory.clone(),
            context: 0,
            pasid: 0,
        };
        let kind = |&(at, kind, _): &(u64, Kind, u64)| (at, kind);
        Self {
            unit: world.unit,
            kinds: world.entries.iter().map(kind).collect(),
            moments: vec![moment],
            events: Vec::new(),
            missed: RefCell::default(),
        }
    }

    fn now(&self) -> usize {
        self.moments.len() - 1
    }

    /// Memory is this now: an entry of this kind was changed.
    pub(crate) fn edited(&mut self, memory: Plain, kind: Kind) {
        let mut moment = self.moments[self.now()].clone();
        moment.memory = memory;
        match kind {
            Kind::Root | Kind::Context => moment.context += 1,
            Kind::Directory | Kind::Pasid => moment.pasid += 1,
            Kind::Table(_) => {}
        }
        self.moments.push(moment);
    }

    /// Flags were set in it.
    pub(crate) fn touched(&mut self, memory: Plain) {
        let now = self.now();
        self.moments[now].memory = memory;
    }

    pub(crate) fn invalidated(&mut self, event: Event) {
        let moment = self.moments[self.now()].clone();
        self.moments.push(moment);
        self.events.push((self.now(), event));
    }

    /// What was invalidated, for a person.
    pub(crate) fn events(&self) -> &[(usize, Event)] {
        &self.events
    }

    /// Everything is invalidated.
    pub(crate) fn forget(&mut self) {
        let now = self.now();
        self.moments.drain(..now);
        self.moments[0].context = 0;
        self.moments[0].pasid = 0;
        self.events.clear();
    }

    /// Whether what is from `made` may be there at `then`: nothing that `covers` it came between.
    fn lives(&self, made: usize, then: usize, covers: impl Fn(&Event) -> bool) -> bool {
        let between = |&(at, event): &(usize, Event)| made < at && at <= then && covers(&event);
        !self.events.iter().any(between)
    }

    /// Memory with each structure as it was at its own time.
    pub(crate) fn mixture(&self, times: Times) -> Plain {
        let mut memory = self.moments[times.tables].memory.clone();
        for (&at, kind) in &self.kinds {
            let from = match kind {
                Kind::Root | Kind::Context => times.context,
                Kind::Directory | Kind::Pasid => times.pasid,
                Kind::Table(_) => continue,
            };
            let words = &self.moments[from].memory.words;
            memory
                .words
                .insert(at, words.get(&at).copied().unwrap_or(0));
        }
        memory
    }

    /// Whether the tables of these times are those of now.
    pub(crate) fn is_of_now(&self, times: Times) -> bool {
        times.tables == self.now()
    }

    /// The answer of now.
    pub(crate) fn fresh(&self, question: &Question) -> Answer {
        super::translate(&self.unit, &self.moments[self.now()].memory, question).0
    }

    /// Every other answer that the rules allow, with the times that explain it; also refusals of older tables, which nobody
    /// remembers, if `refusals`.
    pub(crate) fn older(&self, question: &Question, refusals: bool) -> Vec<(Answer, Times)> {
        let now = self.now();
        let mut answers = Vec::new();
        for tables in 0..=now {
            let moment = &self.moments[tables];
            for context in 0..=moment.context {
                for pasid in 0..=moment.pasid {
                    // The last moment with this version: it lives longest.
                    let last = |version: &dyn Fn(&Moment) -> bool| {
                        self.moments[..=tables]
                            .iter()
                            .rposition(version)
                            .unwrap_or(0)
                    };
                    let times = Times {
                        context: last(&|moment| moment.context == context),
                        pasid: last(&|moment| moment.pasid == pasid),
                        tables,
                    };
                    if times.context.min(times.pasid).min(tables) < now {
                        let answer = self.cached(question, times, refusals);
                        answers.extend(answer.map(|answer| (answer, times)));
                    }
                }
            }
        }
        answers
    }

    /// The answer by entries of these times, if all of them may still count.
    fn cached(&self, question: &Question, times: Times, refusals: bool) -> Option<Answer> {
        let memory = self.mixture(times);
        let answer = self.by(&memory, question, times, refusals);
        self.missed.borrow_mut().extend(memory.missed.take());
        answer
    }

    fn by(
        &self,
        memory: &Plain,
        question: &Question,
        times: Times,
        refusals: bool,
    ) -> Option<Answer> {
        let now = self.now();
        let found = domain(&self.unit, memory, question);
        let Ok(domain) = found else {
            // Who was refused before tables is not remembered; but an entry that is remembered may lead to one that refuses.
            let (context, pasid) = (times.context, times.pasid);
            let lives = times.tables == now
                && (self.lives(context, now, |event| matches!(event, Event::ContextGlobal)))
                && (self.lives(pasid, now, |event| matches!(event, Event::PasidGlobal)));
            let mixed = context != pasid && lives && self.unit.scalable;
            let (answer, _) = super::translate(&self.unit, memory, question);
            return mixed.then_some(answer);
        };
        let pasid = self.tag(memory, question);
        let id = domain.id;
        let context = |event: &Event| match *event {
            Event::ContextGlobal => true,
            Event::ContextDomain { domain: did } => !domain.scalable && did == id,
            Event::ContextDevice {
                domain: did,
                source,
                mask,
            } => (question.source ^ source) & !mask == 0 && (domain.scalable || did == id),
            _ => false,
        };
        let entry = |event: &Event| match *event {
            Event::PasidGlobal => true,
            Event::PasidDomain { domain: did } => did == id,
            Event::PasidOne {
                domain: did,
                pasid: one,
            } => did == id && one == pasid,
            _ => false,
        };
        let lived = self.lives(times.context, times.tables, context)
            && self.lives(times.pasid, times.tables, entry);
        if !lived {
            return None;
        }
        let (answer, _) = through(&self.unit, memory, &domain, question);
        // A page that reaches into the interrupt range is, and refuses there.
        let remembered = match &answer {
            Answer::Memory { .. } => true,
            Answer::Fault { found, .. } => matches!(found.reason, 0x0e | 0x87),
            Answer::Message => false,
        };
        if !remembered && times.tables != now && !refusals {
            // What was refused is not remembered.
            return None;
        }
        let second = matches!(domain.how, How::Second { .. });
        let first = matches!(domain.how, How::First { .. });
        let size = match answer {
            Answer::Memory { size, .. } => size.max(0x1000),
            _ => 0x1000,
        };
        let begin = question.address & !(size - 1);
        let overlaps = |address: u64, order: u32| {
            let last = address + ((0x1000 << order) - 1);
            address <= begin + (size - 1) && begin <= last
        };
        let tables = |event: &Event| match *event {
            Event::IotlbGlobal => true,
            Event::IotlbDomain { domain: did } => did == id,
            Event::IotlbPages {
                domain: did,
                address,
                order,
            } => second && did == id && overlaps(address, order),
            Event::PasidIotlb {
                domain: did,
                pasid: one,
            } => first && did == id && one == pasid,
            Event::PasidIotlbPages {
                domain: did,
                pasid: one,
                address,
                order,
            } => first && did == id && one == pasid && overlaps(address, order),
            _ => false,
        };
        self.lives(times.tables, now, tables).then_some(answer)
    }

    /// The PASID that a question's translations are tagged with.
    fn tag(&self, memory: &Plain, question: &Question) -> u32 {
        if let Some(pasid) = question.pasid {
            return pasid;
        }
        let page = |word: u64| word & 0x000f_ffff_ffff_f000;
        let devfn = u64::from(question.source & 0xff);
        let root = page(self.unit.root) + 16 * u64::from(question.source >> 8);
        let root = root + if devfn >= 0x80 { 8 } else { 0 };
        let context = page(memory.word(root).unwrap_or(0)) + 32 * (devfn & 0x7f);
        let word = memory.word(context + 8).unwrap_or(0);
        if self.unit.rid_pasid {
            (word & 0xf_ffff) as u32
        } else {
            0
        }
    }
}
