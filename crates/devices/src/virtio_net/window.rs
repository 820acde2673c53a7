//! The window from configuration space to BARs. Virtio 1.2 section 4.1.4.9.
//!
//! An access to its data field is one to the BAR, offset and length that
//! stand before it.

use iogate_pci::{After, Endpoint, Function, config};

use super::VirtioNet;
use super::spec::pci::{self, Structure, window};

/// The body of the capability and its writable bits: everything that says
/// where, and the data.
pub(super) fn capability() -> (Vec<u8>, Vec<u8>) {
    let structure = Structure {
        kind: pci::WINDOW,
        offset: 0,
        length: 0,
    };
    let body = pci::capability(structure, 0, &[0; 4]);
    let mut writable = vec![0, 0, 0xff, 0, 0, 0];
    writable.resize(body.len(), 0xff);
    (body, writable)
}

/// Where the capability stands in configuration space.
pub(super) fn find(endpoint: &Endpoint) -> u64 {
    let mut at = u64::from(config::register::CAPABILITIES);
    // As many capabilities as configuration space has room for.
    for _ in 0..48 {
        let mut next = [0];
        endpoint.read_config(at, &mut next);
        let [here] = next.map(u64::from);
        let mut head = [0; 4];
        endpoint.read_config(here, &mut head);
        if matches!(head, [config::capability::VENDOR, _, _, pci::WINDOW]) {
            return here;
        }
        at = here.saturating_add(1);
    }
    u64::MAX
}

/// An access that the window names.
struct Target {
    bar: u8,
    offset: u64,
    length: usize,
}

impl VirtioNet {
    /// What the window is set to: nothing unless it is an aligned access to a
    /// BAR that there is.
    fn target(&self) -> Option<Target> {
        let read = |at: u64| {
            let mut bytes = [0; 4];
            let at = self.window.saturating_add(at);
            self.endpoint.read_config(at, &mut bytes);
            bytes
        };
        let [bar, ..] = read(window::BAR);
        let offset = u64::from(u32::from_le_bytes(read(window::OFFSET)));
        let length = u32::from_le_bytes(read(window::LENGTH));
        let end = offset.checked_add(length.into())?;
        let size = self.endpoint.bar(bar)?.size;
        let fits = matches!(length, 1 | 2 | 4) && end <= size;
        let length = usize::try_from(length).ok().filter(|_| fits)?;
        let aligned = offset.is_multiple_of(u64::try_from(length).ok()?);
        aligned.then_some(Target {
            bar,
            offset,
            length,
        })
    }

    /// Whether an access to configuration space begins in the data field.
    fn touches(&self, offset: u64, length: usize) -> bool {
        let first = self.window.saturating_add(window::DATA);
        let end = offset.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
        offset < first.saturating_add(4) && end > first
    }

    /// Before a read of configuration space: fetches the data.
    pub(super) fn read_window(&self, offset: u64, into: &[u8]) {
        if !self.touches(offset, into.len()) {
            return;
        }
        let Some(target) = self.target() else {
            return;
        };
        let mut data = [0; 4];
        if let Some(data) = data.get_mut(..target.length) {
            self.read_bar(target.bar, target.offset, data);
        }
        let at = self.window.saturating_add(window::DATA);
        // No bit of it is one that asks for a reset.
        let _ = self.endpoint.write_config(at, &data);
    }

    /// After a write to configuration space: sends the data.
    pub(super) fn write_window(&self, offset: u64, from: &[u8]) -> After {
        if !self.touches(offset, from.len()) {
            return After::Nothing;
        }
        let Some(target) = self.target() else {
            return After::Nothing;
        };
        let mut data = [0; 4];
        let at = self.window.saturating_add(window::DATA);
        self.endpoint.read_config(at, &mut data);
        let data = data.get(..target.length).unwrap_or_default();
        self.write_bar(target.bar, target.offset, data)
    }
}
