//! BARs get addresses as firmware gives them: one below the other's end, each
//! aligned to its size, the same on every run.

use iogate_pci::{Bar, BarSpace, BarWidth, Endpoint};

/// Windows that a PC's firmware uses.
const IO: Window = Window::new(0x1000, 0xffff);
const LOW: Window = Window::new(0xc000_0000, 0xfdff_ffff);
const HIGH: Window = Window::new(0x38_0000_0000, 0x3f_ffff_ffff);

/// The devices' BARs do not fit below 4 GiB, or into the ports.
#[derive(Debug)]
pub(super) struct NoRoom {
    source: iogate_dma::Source,
    bar: u8,
    size: u64,
}

impl std::fmt::Display for NoRoom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { source, bar, size } = self;
        write!(
            f,
            "no room for BAR {bar} of {source}, {size:#x} bytes: take fewer devices"
        )
    }
}

/// A window being handed out from its start.
struct Window {
    next: u64,
    last: u64,
}

impl Window {
    const fn new(first: u64, last: u64) -> Self {
        Self { next: first, last }
    }

    fn take(&mut self, size: u64) -> Option<u64> {
        let alignment = size.max(1).checked_next_power_of_two()?;
        let start = self.next.checked_next_multiple_of(alignment)?;
        let end = start.checked_add(size)?;
        (end.checked_sub(1)? <= self.last).then(|| {
            self.next = end;
            start
        })
    }
}

/// Places the BARs of all functions, in their order, and with a physical
/// function's those of its virtual ones, which have no registers of their own.
pub(super) fn bars<'e>(endpoints: impl Iterator<Item = &'e Endpoint>) -> Result<(), NoRoom> {
    let (mut io, mut low, mut high) = (IO, LOW, HIGH);
    for endpoint in endpoints {
        let mut take = |bar: &Bar, count: u64| {
            let window = match (bar.space, bar.width, bar.prefetchable) {
                (BarSpace::Io, ..) => &mut io,
                (BarSpace::Memory, BarWidth::Bits64, true) => &mut high,
                (BarSpace::Memory, ..) => &mut low,
            };
            // No two functions share a page.
            let size = match bar.space {
                BarSpace::Memory => bar.size.max(4096),
                BarSpace::Io => bar.size,
            };
            let size = size.saturating_mul(count);
            window.take(size).ok_or(NoRoom {
                source: endpoint.source(),
                bar: bar.index,
                size,
            })
        };
        let total = endpoint.total_virtual_functions();
        for bar in endpoint.virtual_bars() {
            endpoint.set_virtual_bar(bar.index, take(bar, total.into())?);
        }
        for bar in endpoint.bars() {
            let address = take(bar, 1)?;
            let register = 0x10 + 4 * u64::from(bar.index);
            let bytes = address.to_le_bytes();
            let width = match bar.width {
                BarWidth::Bits32 => 4,
                BarWidth::Bits64 => 8,
            };
            let _ = endpoint.write_config(register, &bytes[..width]);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_hands_out_aligned_places_until_it_is_full() {
        let mut window = Window::new(0x1000, 0x4fff);
        assert_eq!(window.take(0x1000), Some(0x1000));
        assert_eq!(window.take(0x2000), Some(0x2000));
        assert_eq!(window.take(0x2000), None);
        assert_eq!(window.take(0x1000), Some(0x4000));
        assert_eq!(window.take(1), None);
    }
}
