//! A model of interrupt remapping and posting written from the specification alone: an entry is one number of 128 bits,
//! every field a mask. VT-d 4.1 chapter 5, sections 9.9 to 9.11 and 7.1.3.

/// How a unit is set.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Remapping {
    /// GSTS.IRES and GSTS.CFIS.
    pub(crate) on: bool,
    pub(crate) compatibility: bool,
    /// IRTA_REG as the last Set Interrupt Remap Table Pointer found it.
    pub(crate) table: u64,
    /// CAP.PI.
    pub(crate) posts: bool,
}

/// What becomes of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    /// It goes on as this one.
    Message { address: u64, data: u32 },
    /// This vector is to be set in the descriptor at this address.
    Post {
        descriptor: u64,
        vector: u8,
        urgent: bool,
        index: u16,
        told: bool,
    },
    /// It is blocked; `told` says whether that is recorded.
    Blocked { reason: u8, index: u16, told: bool },
}

fn bits(word: u128, last: u32, first: u32) -> u128 {
    word >> first & ((1 << (last - first + 1)) - 1)
}

/// What becomes of a dword of `data` written to `address`, which is within fee00000-feefffff, by `source`. `word` reads
/// guest memory, or nothing where none is.
pub(crate) fn remap(
    unit: &Remapping,
    word: impl Fn(u64) -> Option<u64>,
    source: u16,
    address: u64,
    data: u32,
) -> Outcome {
    // 5.1.4: not enabled.
    if !unit.on {
        return Outcome::Message { address, data };
    }
    let extended = unit.table & 0x800 != 0;
    // 5.1.2.1, 5.1.4: compatibility format.
    if address & 0x10 == 0 {
        if extended || !unit.compatibility {
            return Outcome::Blocked {
                reason: 0x25,
                index: 0,
                told: true,
            };
        }
        return Outcome::Message { address, data };
    }
    // 5.1.2.2, 5.1.3: handle and subhandle.
    let handle = address >> 5 & 0x7fff | (address >> 2 & 1) << 15;
    let subhandle = address & 8 != 0;
    let index = if subhandle {
        handle + u64::from(data & 0xffff)
    } else {
        handle
    };
    let blocked = |reason, told| Outcome::Blocked {
        reason,
        index: (index & 0xffff) as u16,
        told,
    };
    if subhandle && data & 0xffff_0000 != 0 {
        return blocked(0x20, true);
    }
    if index >= 1 << ((unit.table & 0xf) + 1) {
        return blocked(0x21, true);
    }
    let at = (unit.table & !0xfff) + 16 * index;
    let (Some(low), Some(high)) = (word(at), word(at + 8)) else {
        return blocked(0x23, true);
    };
    let entry = u128::from(high) << 64 | u128::from(low);
    let told = bits(entry, 1, 1) == 0;
    if bits(entry, 0, 0) == 0 {
        return blocked(0x22, told);
    }
    let posted = bits(entry, 15, 15) == 1;
    let reserved: &[(u32, u32)] = match (posted, extended) {
        (true, _) if !unit.posts => &[(15, 15)],
        (true, _) => &[(7, 2), (13, 12), (37, 24), (95, 84)],
        (false, true) => &[(14, 12), (31, 24), (127, 84)],
        (false, false) => &[(14, 12), (31, 24), (39, 32), (63, 48), (127, 84)],
    };
    if reserved
        .iter()
        .any(|&(last, first)| bits(entry, last, first) != 0)
    {
        return blocked(0x24, told);
    }
    let id = bits(entry, 79, 64) as u16;
    let matches = match bits(entry, 83, 82) {
        0 => true,
        1 => match bits(entry, 81, 80) {
            0 => source == id,
            1 => source & !4 == id & !4,
            2 => source & !6 == id & !6,
            _ => source & !7 == id & !7,
        },
        2 => (id >> 8..=id & 0xff).contains(&(source >> 8)),
        _ => false,
    };
    if !matches {
        return blocked(0x26, told);
    }
    if posted {
        let address = bits(entry, 127, 96) << 32 | bits(entry, 63, 38) << 6;
        return Outcome::Post {
            descriptor: address as u64,
            vector: bits(entry, 23, 16) as u8,
            urgent: bits(entry, 14, 14) == 1,
            index: index as u16,
            told,
        };
    }
    let destination = if extended {
        bits(entry, 63, 32)
    } else {
        bits(entry, 47, 40)
    };
    let address = 0xfee << 20
        | bits(destination, 7, 0) << 12
        | bits(destination, 31, 8) << 40
        | bits(entry, 3, 3) << 3
        | bits(entry, 2, 2) << 2;
    let data = bits(entry, 23, 16) | bits(entry, 7, 5) << 8 | 1 << 14 | bits(entry, 4, 4) << 15;
    Outcome::Message {
        address: address as u64,
        data: data as u32,
    }
}

/// What posting does to a descriptor of eight words, and the notification that is sent. The reason of what blocks it
/// otherwise. 5.2.3, 9.11.
pub(crate) fn post(
    unit: &Remapping,
    descriptor: &mut [u64; 8],
    vector: u8,
    urgent: bool,
) -> Result<Option<(u64, u32)>, u8> {
    let control = descriptor[4];
    if control & 0xff00_fffc != 0 || descriptor[5] | descriptor[6] | descriptor[7] != 0 {
        return Err(0x28);
    }
    descriptor[usize::from(vector) / 64] |= 1 << (vector % 64);
    let (outstanding, suppressed) = (control & 1 != 0, control & 2 != 0);
    if outstanding || suppressed && !urgent {
        return Ok(None);
    }
    descriptor[4] |= 1;
    let destination = control >> 32;
    let address = if unit.table & 0x800 != 0 {
        0xfee0_0000 | (destination & 0xff) << 12 | (destination >> 8) << 40
    } else {
        0xfee0_0000 | (destination >> 8 & 0xff) << 12
    };
    Ok(Some((address, (control >> 16 & 0xff) as u32 | 0x4000)))
}
