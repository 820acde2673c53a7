//! From a request to memory: root, context and PASID entries, then the tables. VT-d 4.1 sections 3.4 to 3.8, 9.1 to 9.6.

use super::memory::Plain;
use super::tables::{self, First, Page, Second, Walked, mask};
use super::unit::Unit;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Access {
    Read,
    Write,
}

/// An untranslated request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Question {
    /// Bus, device and function.
    pub(crate) source: u16,
    pub(crate) pasid: Option<u32>,
    pub(crate) address: u64,
    pub(crate) access: Access,
    pub(crate) privileged: bool,
}

/// A fault reason, or several of which the specification does not say which comes first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Found {
    pub(crate) reason: u8,
    pub(crate) or: Vec<u8>,
}

impl Found {
    pub(crate) fn reason(reason: u8) -> Self {
        Self {
            reason,
            or: Vec::new(),
        }
    }
}

/// What becomes of a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Answer {
    /// Memory at this address; the page's bytes from `page` on, `size` of them (0: no tables). `domain` tags it.
    Memory {
        address: u64,
        size: u64,
        read: bool,
        write: bool,
    },
    /// An interrupt message.
    Message,
    /// Refused. `told`: recorded for the guest, because no Fault Processing Disable bit that counts is set.
    Fault { found: Found, told: bool },
}

/// What the entries before the tables say.
#[derive(Clone, Debug)]
pub(crate) struct Domain {
    pub(crate) id: u16,
    pub(crate) scalable: bool,
    pub(crate) silent: bool,
    pub(crate) how: How,
}

#[derive(Clone, Debug)]
pub(crate) enum How {
    PassThrough,
    Second {
        set: Second,
        root: u64,
        bits: u32,
    },
    First {
        set: First,
        root: u64,
        bits: u32,
        behind: Option<(Second, u64, u32)>,
    },
}

/// What becomes of a request, and which flags its walk sets: the address of an entry and the bits.
pub(crate) fn translate(
    unit: &Unit,
    memory: &Plain,
    question: &Question,
) -> (Answer, Vec<(u64, u64)>) {
    let interrupts = question.address >> 20 == 0xfee;
    if interrupts && question.pasid.is_none() && question.access == Access::Write {
        return (Answer::Message, Vec::new());
    }
    if !unit.translates && interrupts && question.pasid.is_none() {
        let found = Found::reason(0);
        return (Answer::Fault { found, told: false }, Vec::new());
    }
    if !unit.translates {
        return (whole(question.address), Vec::new());
    }
    match domain(unit, memory, question) {
        Ok(domain) if interrupts && question.pasid.is_none() => {
            let found = Found::reason(if domain.scalable { 0x87 } else { 0x0e });
            let told = !domain.silent;
            (Answer::Fault { found, told }, Vec::new())
        }
        Ok(domain) => through(unit, memory, &domain, question),
        Err((found, told)) => (Answer::Fault { found, told }, Vec::new()),
    }
}

fn whole(address: u64) -> Answer {
    Answer::Memory {
        address,
        size: 0,
        read: true,
        write: true,
    }
}

/// The domain that the request enters, or a reason and whether it is told.
pub(crate) fn domain(
    unit: &Unit,
    memory: &Plain,
    question: &Question,
) -> Result<Domain, (Found, bool)> {
    let mode = unit.root >> 10 & 3;
    match mode {
        0 => legacy(unit, memory, question),
        1 if unit.scalable => scalable(unit, memory, question),
        // Reserved, or a mode that refuses everything.
        _ => Err((Found::reason(0x30), true)),
    }
}

/// VT-d 4.1 sections 9.1 and 9.3.
fn legacy(unit: &Unit, memory: &Plain, question: &Question) -> Result<Domain, (Found, bool)> {
    if question.pasid.is_some() {
        return Err((Found::reason(0x31), true));
    }
    let above = mask(unit.host_bits, 63);
    let root = (unit.root & mask(12, 63)) + 16 * u64::from(question.source >> 8);
    let (Some(low), Some(high)) = (memory.word(root), memory.word(root + 8)) else {
        return Err((Found::reason(0x08), true));
    };
    if low & 1 == 0 {
        return Err((Found::reason(0x01), true));
    }
    if low & (mask(1, 11) | above) != 0 || high != 0 {
        return Err((Found::reason(0x0a), true));
    }
    let context = (low & mask(12, 63)) + 16 * u64::from(question.source & 0xff);
    let (Some(low), Some(high)) = (memory.word(context), memory.word(context + 8)) else {
        return Err((Found::reason(0x09), true));
    };
    // Fault Processing Disable counts from here on, even if nothing else of the entry does.
    let silent = low & 2 != 0;
    let fault = |reason| Err((Found::reason(reason), !silent));
    if low & 1 == 0 {
        return fault(0x02);
    }
    let kind = low >> 2 & 3;
    if low & (mask(4, 11) | above) != 0 || high & (1 << 7 | mask(24, 63)) != 0 {
        return fault(0x0b);
    }
    let width = high & 7;
    if width > 4 || unit.widths >> width & 1 == 0 {
        return fault(0x03);
    }
    let allowed = match kind {
        0 => true,
        1 => unit.device_tlb,
        2 => unit.pass_through,
        _ => false,
    };
    if !allowed {
        return fault(0x03);
    }
    let how = match kind {
        2 => How::PassThrough,
        _ => second_stage(unit, width, low & mask(12, 63), unit.snoop, false),
    };
    Ok(Domain {
        id: (high >> 8 & 0xffff) as u16,
        scalable: false,
        silent,
        how,
    })
}

fn second_stage(unit: &Unit, width: u64, root: u64, snoop: bool, accessed: bool) -> How {
    let levels = width as u32 + 2;
    How::Second {
        set: Second {
            levels,
            host_bits: unit.host_bits,
            pages_2m: unit.second_2m,
            pages_1g: unit.second_1g,
            snoop,
            accessed,
        },
        root,
        bits: unit.guest_bits.min(12 + 9 * levels),
    }
}

/// VT-d 4.1 sections 9.2 and 9.4 to 9.6.
fn scalable(unit: &Unit, memory: &Plain, question: &Question) -> Result<Domain, (Found, bool)> {
    let above = mask(unit.host_bits, 63);
    let devfn = u64::from(question.source & 0xff);
    let root = (unit.root & mask(12, 63)) + 16 * u64::from(question.source >> 8);
    // The upper half of an entry is for devices 16 to 31.
    let root = root + if devfn >= 0x80 { 8 } else { 0 };
    let Some(half) = memory.word(root) else {
        return Err((Found::reason(0x38), true));
    };
    if half & 1 == 0 {
        return Err((Found::reason(0x39), true));
    }
    if half & (mask(1, 11) | above) != 0 {
        return Err((Found::reason(0x3a), true));
    }
    let context = (half & mask(12, 63)) + 32 * (devfn & 0x7f);
    let words: Option<Vec<u64>> = (0..4).map(|i| memory.word(context + 8 * i)).collect();
    let Some(words) = words else {
        return Err((Found::reason(0x40), true));
    };
    let mut silent = words[0] & 2 != 0;
    if words[0] & 1 == 0 {
        return Err((Found::reason(0x41), !silent));
    }
    let mut reserved = words[0] & (mask(5, 8) | above) != 0
        || words[1] & mask(21, 63) != 0
        || words[2] != 0
        || words[3] != 0;
    // What the unit has not is reserved.
    let absent = [
        (0, 2, unit.device_tlb),
        (0, 3, unit.pasid_bits > 0),
        (0, 4, unit.page_requests),
        (1, 20, unit.rid_privileged),
    ];
    for (word, bit, there) in absent {
        reserved |= !there && words[word] >> bit & 1 != 0;
    }
    if reserved {
        return Err((Found::reason(0x42), !silent));
    }
    let pasid = match question.pasid {
        None if unit.rid_pasid => words[1] & mask(0, 19),
        None => 0,
        Some(_) if words[0] & 1 << 3 == 0 => return Err((Found::reason(0x45), !silent)),
        Some(pasid) => u64::from(pasid),
    };
    // PDTS: 2^(X + 7) directory entries of 64 PASIDs each.
    if pasid >> ((words[0] >> 9 & 7) + 7 + 6) != 0 {
        let reason = if question.pasid.is_some() { 0x46 } else { 0x48 };
        return Err((Found::reason(reason), !silent));
    }
    let directory = (words[0] & mask(12, 63)) + 8 * (pasid >> 6);
    let Some(entry) = memory.word(directory) else {
        return Err((Found::reason(0x50), true));
    };
    silent |= entry & 2 != 0;
    if entry & 1 == 0 {
        return Err((Found::reason(0x51), !silent));
    }
    if entry & (mask(2, 11) | above) != 0 {
        return Err((Found::reason(0x52), !silent));
    }
    let table = (entry & mask(12, 63)) + 64 * (pasid & 63);
    let words: Option<Vec<u64>> = (0..8).map(|i| memory.word(table + 8 * i)).collect();
    let Some(words) = words else {
        return Err((Found::reason(0x58), true));
    };
    silent |= words[0] & 2 != 0;
    let fault = |reason| Err((Found::reason(reason), !silent));
    if words[0] & 1 == 0 {
        return fault(0x59);
    }
    let kind = words[0] >> 6 & 7;
    let (first, second) = (kind == 1 || kind == 3, kind == 2 || kind == 3);
    let width = words[0] >> 2 & 7;
    let second_fits = width <= 4 && unit.widths >> width & 1 != 0;
    let levels = match words[2] >> 2 & 3 {
        0 => Some(4),
        1 if unit.first_5_levels => Some(5),
        _ => None,
    };
    let known = match kind {
        1 => unit.first_stage,
        2 => unit.second_stage,
        3 => unit.nested,
        4 => unit.pass_through,
        _ => false,
    };
    if !known {
        return fault(0x5b);
    }
    let mut reserved = words[0] & (1 << 5 | mask(10, 11)) != 0
        || words[1] & mask(16, 22) != 0
        || words[3..].iter().any(|&word| word != 0)
        || words[1] & 1 << 24 != 0 && !unit.snoop;
    if second {
        reserved |= words[0] & above != 0;
        reserved |= words[0] & 1 << 9 != 0 && !unit.second_accessed;
    }
    if first {
        reserved |= words[2] & (above | mask(8, 11)) != 0;
        reserved |= words[2] & 1 != 0 && !unit.supervisor_requests;
        reserved |= words[2] & 2 != 0 && !unit.execute_requests;
        reserved |= words[2] & 1 << 7 != 0 && !unit.extended_accessed;
    }
    let invalid = second && !second_fits || first && levels.is_none();
    // Which of the two is looked at first is nowhere said.
    match (reserved, invalid) {
        (true, true) => {
            let found = Found {
                reason: 0x5a,
                or: vec![0x5b],
            };
            return Err((found, !silent));
        }
        (true, false) => return fault(0x5a),
        (false, true) => return fault(0x5b),
        _ => {}
    }
    if question.privileged && first && words[2] & 1 == 0 {
        return fault(0x5d);
    }
    let accessed = unit.second_accessed && words[0] & 1 << 9 != 0;
    let below = second_stage(unit, width, words[0] & mask(12, 63), unit.snoop, accessed);
    let how = match kind {
        1 | 3 => {
            let levels = levels.unwrap_or(4);
            How::First {
                set: First {
                    levels,
                    host_bits: unit.host_bits,
                    pages_1g: unit.first_1g,
                    no_execute: words[2] & 1 << 5 != 0,
                    write_protect: words[2] & 1 << 4 != 0,
                    extended_accessed: unit.extended_accessed && words[2] & 1 << 7 != 0,
                },
                root: words[2] & mask(12, 63),
                bits: 12 + 9 * levels,
                behind: match below {
                    How::Second { set, root, bits } if kind == 3 => Some((set, root, bits)),
                    _ => None,
                },
            }
        }
        2 => below,
        _ => How::PassThrough,
    };
    Ok(Domain {
        id: words[1] as u16,
        scalable: true,
        silent,
        how,
    })
}

/// The request in its domain.
pub(crate) fn through(
    unit: &Unit,
    memory: &Plain,
    domain: &Domain,
    question: &Question,
) -> (Answer, Vec<(u64, u64)>) {
    let mut touched = Vec::new();
    let mut more = Vec::new();
    let answer = enter(unit, memory, domain, question, &mut touched, &mut more);
    let found = match answer {
        Ok(page) => {
            let Page {
                output,
                size,
                read,
                write,
            } = page;
            // No device may reach the interrupt controller through tables.
            if output >> 20 == 0xfee {
                Found::reason(if domain.scalable { 0x87 } else { 0x0e })
            } else {
                let answer = Answer::Memory {
                    address: output,
                    size,
                    read,
                    write,
                };
                return (answer, touched);
            }
        }
        Err(found) => found,
    };
    let told = !domain.silent;
    // What a refused request passed keeps its flags: a stage that was walked to its end, the second below tables of the first.
    (Answer::Fault { found, told }, touched)
}

fn enter(
    unit: &Unit,
    memory: &Plain,
    domain: &Domain,
    question: &Question,
    touched: &mut Vec<(u64, u64)>,
    more: &mut Vec<Walked>,
) -> Result<Page, Found> {
    let scalable = domain.scalable;
    let address = question.address;
    let end = |walked, is_first, more: &mut Vec<Walked>| match walked {
        Walked::Page(page) => Ok(page),
        walked => {
            let mut found = tables::reason(&walked, scalable, is_first);
            for other in more.drain(..) {
                found
                    .or
                    .push(tables::reason(&other, scalable, is_first).reason);
            }
            Err(found)
        }
    };
    match &domain.how {
        How::PassThrough => {
            if address >> unit.host_bits != 0 {
                return Err(Found::reason(if scalable { 0x83 } else { 0x04 }));
            }
            Ok(Page {
                output: address,
                size: 0,
                read: true,
                write: true,
            })
        }
        How::Second { set, root, bits } => {
            if address >> bits != 0 {
                return Err(Found::reason(if scalable { 0x83 } else { 0x04 }));
            }
            let access = question.access;
            let walked = tables::second(set, memory, *root, address, access, touched, more);
            end(walked, false, more)
        }
        How::First {
            set,
            root,
            bits,
            behind,
        } => {
            let upper = address >> (bits - 1);
            if upper != 0 && upper != u64::MAX >> (bits - 1) {
                return Err(Found::reason(0x80));
            }
            let walked = tables::first(
                set,
                behind.as_ref().map(|(set, root, bits)| (set, *root, *bits)),
                memory,
                *root,
                address,
                question.access,
                question.privileged,
                touched,
                more,
            );
            let first = end(walked, true, more)?;
            let Some((set, root, bits)) = behind else {
                return Ok(first);
            };
            if first.output >> bits != 0 {
                return Err(Found::reason(0x84));
            }
            let access = question.access;
            let walked = tables::second(set, memory, *root, first.output, access, touched, more);
            let second = end(walked, false, more)?;
            Ok(Page {
                output: second.output,
                size: first.size.min(second.size),
                read: first.read && second.read,
                write: first.write && second.write,
            })
        }
    }
}
