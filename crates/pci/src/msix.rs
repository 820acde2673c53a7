//! The MSI-X table and its Pending Bit Array. PCI Local Bus 3.0 section
//! 6.8.2.

use iogate_dma::Message;

use crate::Endpoint;
use crate::layout::{ENTRY, MsixLayout};

/// Vector Control, bit 0.
const MASKED: u32 = 1;

/// The structures that stand in BAR space.
pub(crate) struct Table {
    pub(crate) layout: MsixLayout,
    /// Offset of the capability in configuration space.
    pub(crate) at: u16,
    entries: Vec<[u32; 4]>,
    pending: Vec<u64>,
}

impl Table {
    pub(crate) fn new(layout: MsixLayout, at: u16) -> Self {
        let mut table = Self {
            layout,
            at,
            entries: vec![[0; 4]; layout.vectors.into()],
            pending: vec![0; usize::from(layout.vectors).div_ceil(64)],
        };
        table.reset();
        table
    }

    /// Every vector masked, nothing pending.
    pub(crate) fn reset(&mut self) {
        self.entries.fill([0, 0, 0, MASKED]);
        self.pending.fill(0);
    }

    pub(crate) fn message(&self, vector: u16) -> Option<Message> {
        let [low, high, data, _] = *self.entries.get(usize::from(vector))?;
        Some(Message {
            address: u64::from(high) << 32 | u64::from(low) & !3,
            data,
        })
    }

    pub(crate) fn program(&mut self, vector: u16, message: Message) {
        if let Some([low, high, data, _]) = self.entries.get_mut(usize::from(vector)) {
            let [a0, a1, a2, a3, a4, a5, a6, a7] = (message.address & !3).to_le_bytes();
            *low = u32::from_le_bytes([a0, a1, a2, a3]);
            *high = u32::from_le_bytes([a4, a5, a6, a7]);
            *data = message.data;
        }
    }

    pub(crate) fn is_masked(&self, vector: u16) -> bool {
        let entry = self.entries.get(usize::from(vector));
        entry.is_none_or(|[_, _, _, control]| control & MASKED != 0)
    }

    pub(crate) fn set_masked(&mut self, vector: u16, masked: bool) {
        if let Some([_, _, _, control]) = self.entries.get_mut(usize::from(vector)) {
            *control = (*control & !MASKED) | u32::from(masked);
        }
    }

    pub(crate) fn is_pending(&self, vector: u16) -> bool {
        let word = self.pending.get(usize::from(vector >> 6));
        word.is_some_and(|word| word & 1 << (vector & 63) != 0)
    }

    pub(crate) fn set_pending(&mut self, vector: u16, pending: bool) {
        if vector >= self.layout.vectors {
            return;
        }
        if let Some(word) = self.pending.get_mut(usize::from(vector >> 6)) {
            *word = (*word & !(1 << (vector & 63))) | u64::from(pending) << (vector & 63);
        }
    }

    pub(crate) fn clear_pending(&mut self) {
        self.pending.fill(0);
    }

    /// A vector that is pending and not masked.
    pub(crate) fn deliverable(&self) -> Option<u16> {
        (0..self.layout.vectors).find(|vector| self.is_pending(*vector) && !self.is_masked(*vector))
    }

    /// Whether anything is pending: quick to ask.
    pub(crate) fn any_pending(&self) -> bool {
        self.pending.iter().any(|word| *word != 0)
    }

    /// One byte of the table.
    fn table_byte(&self, at: u64) -> u8 {
        let (entry, field, byte) = position(at);
        let entry = self.entries.get(entry).copied().unwrap_or_default();
        let value = entry.get(field).copied().unwrap_or_default();
        value.to_le_bytes().get(byte).copied().unwrap_or_default()
    }

    fn set_table_byte(&mut self, at: u64, new: u8) {
        let (entry, field, byte) = position(at);
        let value = self.entries.get_mut(entry).and_then(|e| e.get_mut(field));
        if let Some(value) = value {
            let mut bytes = value.to_le_bytes();
            if let Some(old) = bytes.get_mut(byte) {
                *old = new;
            }
            *value = u32::from_le_bytes(bytes);
            if field == 3 {
                // The other bits of Vector Control are reserved.
                *value &= MASKED;
            }
        }
    }

    fn pending_byte(&self, at: u64) -> u8 {
        let word = usize::try_from(at >> 3)
            .ok()
            .and_then(|i| self.pending.get(i));
        let bytes = word.copied().unwrap_or_default().to_le_bytes();
        let index = usize::try_from(at & 7).unwrap_or_default();
        bytes.get(index).copied().unwrap_or_default()
    }

    /// Fills those bytes of `into`, which is a read of `bar` at `offset`, that
    /// lie in the table or the pending bits. Whether there were any.
    pub(crate) fn read(&self, bar: u8, offset: u64, into: &mut [u8]) -> bool {
        let mut any = false;
        for (byte, at) in into.iter_mut().zip(offset..=u64::MAX) {
            if let Some(at) = inside(bar == self.layout.table_bar, at, self.table()) {
                *byte = self.table_byte(at);
                any = true;
            } else if let Some(at) = inside(bar == self.layout.pba_bar, at, self.pba()) {
                *byte = self.pending_byte(at);
                any = true;
            }
        }
        any
    }

    /// Takes those bytes of a write that lie in the table; pending bits are
    /// read-only. Whether any lay in either.
    pub(crate) fn write(&mut self, bar: u8, offset: u64, from: &[u8]) -> bool {
        let mut any = false;
        for (byte, at) in from.iter().zip(offset..=u64::MAX) {
            if let Some(at) = inside(bar == self.layout.table_bar, at, self.table()) {
                self.set_table_byte(at, *byte);
                any = true;
            } else if inside(bar == self.layout.pba_bar, at, self.pba()).is_some() {
                any = true;
            }
        }
        any
    }

    fn table(&self) -> (u64, u64) {
        (self.layout.table_offset.into(), self.layout.table_size())
    }

    fn pba(&self) -> (u64, u64) {
        (self.layout.pba_offset.into(), self.layout.pba_size())
    }
}

/// Entry, dword and byte of the table's byte `at`.
fn position(at: u64) -> (usize, usize, usize) {
    let part = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
    (part(at / ENTRY), part(at >> 2 & 3), part(at & 3))
}

fn inside(same_bar: bool, at: u64, (first, size): (u64, u64)) -> Option<u64> {
    let relative = at.checked_sub(first).filter(|at| *at < size);
    relative.filter(|_| same_bar)
}

/// The MSI-X structures of an endpoint, as the endpoint's host programs them.
/// A vector beyond the table is ignored.
#[derive(Clone, Copy)]
pub struct Msix<'e> {
    pub(crate) endpoint: &'e Endpoint,
    pub(crate) layout: MsixLayout,
}

impl Msix<'_> {
    /// How many vectors there are, and where the structures stand.
    pub fn layout(&self) -> MsixLayout {
        self.layout
    }

    /// Sets the message of a vector; its mask bit stays.
    pub fn program(&self, vector: u16, message: Message) {
        self.endpoint
            .with_table(|table, _| table.program(vector, message));
    }

    /// The message of a vector; `None` beyond the table.
    pub fn message(&self, vector: u16) -> Option<Message> {
        self.endpoint
            .with_table(|table, _| table.message(vector))
            .flatten()
    }

    /// Masks a vector: what is raised stays pending.
    pub fn mask(&self, vector: u16) {
        self.endpoint
            .with_table(|table, _| table.set_masked(vector, true));
    }

    /// Unmasks a vector: if it is pending, its message is sent.
    pub fn unmask(&self, vector: u16) {
        self.endpoint
            .with_table(|table, _| table.set_masked(vector, false));
    }

    /// Whether a vector is masked.
    pub fn is_masked(&self, vector: u16) -> bool {
        self.endpoint
            .with_table(|table, _| table.is_masked(vector))
            .unwrap_or(true)
    }

    /// Whether a vector is pending.
    pub fn is_pending(&self, vector: u16) -> bool {
        self.endpoint
            .with_table(|table, _| table.is_pending(vector))
            .unwrap_or(false)
    }

    /// Whether MSI-X Enable is set.
    pub fn is_enabled(&self) -> bool {
        self.control() & 1 << 15 != 0
    }

    /// Sets or clears Function Mask: all vectors masked at once.
    pub fn set_function_mask(&self, masked: bool) {
        self.endpoint.with_table(|table, config| {
            let at = table.at.saturating_add(2);
            let control = config.get16(at) & !(1 << 14) | u16::from(masked) << 14;
            config.set(at, &control.to_le_bytes());
        });
    }

    fn control(&self) -> u16 {
        self.endpoint
            .with_table(|table, config| config.get16(table.at.saturating_add(2)))
            .unwrap_or(0)
    }
}
