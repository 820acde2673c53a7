//! Log pages. NVM Express 1.4 section 5.14.1.

use super::page::Page;

/// Log page identifiers. NVM Express 1.4 figure 191.
pub(crate) mod id {
    pub(crate) const ERROR: u8 = 0x01;
    pub(crate) const SMART: u8 = 0x02;
    pub(crate) const FIRMWARE: u8 = 0x03;
}

/// Error Information, one entry (64 bytes). NVM Express 1.4 figure 192.
#[derive(Clone, Copy, Default)]
pub(crate) struct ErrorEntry {
    /// Errors so far, this one included; 0 for no entry.
    pub(crate) count: u64,
    pub(crate) sqid: u16,
    pub(crate) cid: u16,
    /// Status field with the phase tag in bit 0.
    pub(crate) status: u16,
    pub(crate) nsid: u32,
}

impl ErrorEntry {
    pub(crate) fn page(&self) -> Page<64> {
        let mut page = Page::new();
        if self.count != 0 {
            page.put(0, &self.count.to_le_bytes());
            page.put(8, &self.sqid.to_le_bytes());
            page.put(10, &self.cid.to_le_bytes());
            page.put(12, &self.status.to_le_bytes());
            // No particular parameter.
            page.put(14, &[0xff, 0xff]);
            page.put(24, &self.nsid.to_le_bytes());
        }
        page
    }
}

/// What SMART / Health Information counts.
#[derive(Clone, Copy, Default)]
pub(crate) struct Counters {
    /// 512-byte units.
    pub(crate) units_read: u64,
    pub(crate) units_written: u64,
    pub(crate) reads: u64,
    pub(crate) writes: u64,
    pub(crate) errors: u64,
}

/// The composite temperature, in kelvins.
pub(crate) const TEMPERATURE: u16 = 310;

impl Counters {
    /// SMART / Health Information (512 bytes). NVM Express 1.4 figure 193.
    pub(crate) fn page(&self) -> Page<512> {
        let mut page = Page::new();
        page.put(1, &TEMPERATURE.to_le_bytes());
        // Available spare and its threshold, in percent.
        page.put(3, &[100, 10]);
        // Data units are thousands of 512 bytes, rounded up.
        page.put(32, &self.units_read.div_ceil(1000).to_le_bytes());
        page.put(48, &self.units_written.div_ceil(1000).to_le_bytes());
        page.put(64, &self.reads.to_le_bytes());
        page.put(80, &self.writes.to_le_bytes());
        page.put(176, &self.errors.to_le_bytes());
        page
    }
}

/// Firmware Slot Information (512 bytes): slot 1 is active. NVM Express 1.4
/// figure 194.
pub(crate) fn firmware() -> Page<512> {
    let mut page = Page::new();
    page.put(0, &[1]);
    page.put_text(8, 8, env!("CARGO_PKG_VERSION"));
    page
}
