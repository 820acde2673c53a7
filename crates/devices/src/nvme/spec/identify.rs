//! Identify data structures (4096 bytes each). NVM Express 1.4 section 5.15.2.

use super::page::Page;
use super::registers::VERSION;

/// Bytes of every Identify data structure.
pub(crate) const SIZE: usize = 4096;

/// Controller or Namespace Structure. NVM Express 1.4 figure 244.
pub(crate) mod cns {
    pub(crate) const NAMESPACE: u8 = 0x00;
    pub(crate) const CONTROLLER: u8 = 0x01;
    pub(crate) const ACTIVE_NAMESPACES: u8 = 0x02;
    pub(crate) const NAMESPACE_DESCRIPTORS: u8 = 0x03;
}

/// What differs from one controller to the next.
pub(crate) struct Controller<'c> {
    pub(crate) vendor: u16,
    pub(crate) serial: &'c str,
    pub(crate) uuid: &'c [u8; 16],
    pub(crate) mdts: u8,
    pub(crate) async_events: u8,
}

impl Controller<'_> {
    /// Identify Controller. NVM Express 1.4 figure 247.
    pub(crate) fn page(&self) -> Page<SIZE> {
        let mut page = Page::new();
        page.put(0, &self.vendor.to_le_bytes());
        page.put(2, &self.vendor.to_le_bytes());
        page.put_text(4, 20, self.serial);
        page.put_text(24, 40, "iogate NVMe");
        page.put_text(64, 8, env!("CARGO_PKG_VERSION"));
        page.put(77, &[self.mdts]);
        page.put(80, &VERSION.to_le_bytes());
        // Controller Type: I/O.
        page.put(111, &[1]);
        // Abort Command Limit and Async Event Request Limit, both less one.
        page.put(258, &[0, self.async_events.saturating_sub(1)]);
        // One firmware slot, read-only.
        page.put(260, &[0x03]);
        // Log pages take an offset and a long length.
        page.put(261, &[0x04]);
        // Warning and critical composite temperature, in kelvins.
        page.put(266, &343_u16.to_le_bytes());
        page.put(268, &373_u16.to_le_bytes());
        // Entry sizes: 64 and 16 bytes, required and maximal.
        page.put(512, &[0x66, 0x44]);
        // One namespace.
        page.put(516, &1_u32.to_le_bytes());
        // Dataset Management and Write Zeroes.
        page.put(520, &0x000c_u16.to_le_bytes());
        // A volatile write cache is present.
        page.put(525, &[0x01]);
        page.put(768, self.name().as_bytes());
        // Power state 0: 1.00 W.
        page.put(2048, &100_u16.to_le_bytes());
        page
    }

    /// The NVM Subsystem NQN in its UUID form. NVM Express 1.4 section 7.9.
    fn name(&self) -> String {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *self.uuid;
        format!(
            "nqn.2014-08.org.nvmexpress:uuid:{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            u32::from_be_bytes([a, b, c, d]),
            u16::from_be_bytes([e, f]),
            u16::from_be_bytes([g, h]),
            u16::from_be_bytes([i, j]),
            u64::from_be_bytes([0, 0, k, l, m, n, o, p]),
        )
    }
}

/// Identify Namespace, of `blocks` logical blocks of `1 << shift` bytes. NVM
/// Express 1.4 figure 245.
pub(crate) fn namespace(blocks: u64, shift: u8) -> Page<SIZE> {
    let mut page = Page::new();
    page.put(0, &blocks.to_le_bytes());
    page.put(8, &blocks.to_le_bytes());
    page.put(16, &blocks.to_le_bytes());
    // LBA Format 0: data size.
    page.put(130, &[shift]);
    page
}

/// Active Namespace ID list: those above `after`. NVM Express 1.4 section
/// 5.15.2.3.
pub(crate) fn active_namespaces(after: u32) -> Page<SIZE> {
    let mut page = Page::new();
    if after == 0 {
        page.put(0, &1_u32.to_le_bytes());
    }
    page
}

/// Namespace Identification Descriptor list: one UUID. NVM Express 1.4 figure
/// 249.
pub(crate) fn descriptors(uuid: &[u8; 16]) -> Page<SIZE> {
    let mut page = Page::new();
    page.put(0, &[3, 16]);
    page.put(4, uuid);
    page
}
