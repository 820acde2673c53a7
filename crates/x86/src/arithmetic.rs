//! Results and flags of integer operations on 1 to 8 bytes.

use crate::Registers;

pub(crate) const CF: u64 = 1;
pub(crate) const PF: u64 = 1 << 2;
pub(crate) const AF: u64 = 1 << 4;
pub(crate) const ZF: u64 = 1 << 6;
pub(crate) const SF: u64 = 1 << 7;
pub(crate) const DF: u64 = 1 << 10;
pub(crate) const OF: u64 = 1 << 11;
/// The six flags of a result.
pub(crate) const ALL: u64 = CF | PF | AF | ZF | SF | OF;

/// A width in bytes: 1, 2, 4 or 8.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Width(pub(crate) usize);

impl Width {
    pub(crate) fn bits(self) -> u32 {
        match self.0 {
            1 => 8,
            2 => 16,
            4 => 32,
            _ => 64,
        }
    }

    pub(crate) fn mask(self) -> u64 {
        u64::MAX >> 64_u32.saturating_sub(self.bits())
    }

    pub(crate) fn sign(self) -> u64 {
        1 << self.bits().saturating_sub(1)
    }

    /// The value with its sign in all bits above.
    pub(crate) fn extend(self, value: u64) -> u64 {
        let unused = 64_u32.saturating_sub(self.bits());
        (value.wrapping_shl(unused).cast_signed() >> unused).cast_unsigned()
    }
}

impl Registers {
    pub(crate) fn flag(&self, flag: u64) -> bool {
        self.flags & flag != 0
    }

    /// Sets those of `which` that are in `to`, clears the others of them.
    pub(crate) fn set_flags(&mut self, which: u64, to: u64) {
        self.flags = self.flags & !which | to & which;
    }
}

pub(crate) fn when(condition: bool, flag: u64) -> u64 {
    if condition { flag } else { 0 }
}

/// ZF, SF and PF of a result.
pub(crate) fn of_result(width: Width, result: u64) -> u64 {
    let result = result & width.mask();
    let [low, ..] = result.to_le_bytes();
    when(result == 0, ZF)
        | when(result & width.sign() != 0, SF)
        | when(low.count_ones() & 1 == 0, PF)
}

/// The sum of both and a carry, with its flags.
pub(crate) fn add(width: Width, a: u64, b: u64, carry: bool) -> (u64, u64) {
    let (a, b) = (a & width.mask(), b & width.mask());
    let sum = u128::from(a)
        .wrapping_add(u128::from(b))
        .wrapping_add(u128::from(carry));
    let result = a.wrapping_add(b).wrapping_add(u64::from(carry)) & width.mask();
    let flags = of_result(width, result)
        | when(sum > u128::from(width.mask()), CF)
        | (a ^ b ^ result) & AF
        | when((a ^ result) & (b ^ result) & width.sign() != 0, OF);
    (result, flags)
}

/// The difference less a borrow, with its flags.
pub(crate) fn subtract(width: Width, a: u64, b: u64, borrow: bool) -> (u64, u64) {
    let (a, b) = (a & width.mask(), b & width.mask());
    let result = a.wrapping_sub(b).wrapping_sub(u64::from(borrow)) & width.mask();
    let taken = u128::from(b).wrapping_add(u128::from(borrow));
    let flags = of_result(width, result)
        | when(taken > u128::from(a), CF)
        | (a ^ b ^ result) & AF
        | when((a ^ b) & (a ^ result) & width.sign() != 0, OF);
    (result, flags)
}

/// Shifts and rotations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Shift {
    Left,
    Right,
    RightSigned,
    RotateLeft,
    RotateRight,
    RotateLeftCarry,
    RotateRightCarry,
}

/// The shifted value, the flags that change, and what they become.
pub(crate) fn shift(
    kind: Shift,
    width: Width,
    value: u64,
    count: u64,
    carry: bool,
) -> (u64, u64, u64) {
    let value = value & width.mask();
    let count = count & if width.0 == 8 { 0x3f } else { 0x1f };
    if count == 0 {
        return (value, 0, 0);
    }
    let (mut result, mut carry) = (value, carry);
    for _ in 0..count {
        let (low, high) = (result & 1 != 0, result & width.sign() != 0);
        let up = result << 1 & width.mask();
        let down = result >> 1;
        (result, carry) = match kind {
            Shift::Left => (up, high),
            Shift::Right => (down, low),
            Shift::RightSigned => (down | when(high, width.sign()), low),
            Shift::RotateLeft => (up | u64::from(high), high),
            Shift::RotateRight => (down | when(low, width.sign()), low),
            Shift::RotateLeftCarry => (up | u64::from(carry), high),
            Shift::RotateRightCarry => (down | when(carry, width.sign()), low),
        };
    }
    let top = result & width.sign() != 0;
    let second = result & width.sign() >> 1 != 0;
    let overflow = match kind {
        Shift::Left | Shift::RotateLeft | Shift::RotateLeftCarry => top != carry,
        Shift::Right => value & width.sign() != 0,
        Shift::RightSigned => false,
        Shift::RotateRight | Shift::RotateRightCarry => top != second,
    };
    let flags = when(carry, CF) | when(overflow, OF);
    match kind {
        Shift::Left | Shift::Right | Shift::RightSigned => {
            (result, ALL & !AF, flags | of_result(width, result))
        }
        _ => (result, CF | OF, flags),
    }
}
