//! The SR-IOV capability of a physical function. PCI Express Base 6.0 section
//! 9.3.3. Software reads it; it is changed by who assigns the function's
//! resources, as the kernel is for a program behind VFIO.

use crate::config::ConfigSpace;
use crate::{Bar, BarWidth, Endpoint};

/// Bytes of the capability.
const SIZE: u16 = 0x40;
const CONTROL: u16 = 0x08;
const NUM_VFS: u16 = 0x10;
const DEPENDENCY_LINK: u16 = 0x12;
const VF_BAR0: u16 = 0x24;

/// VF Enable, VF MSE and ARI Capable Hierarchy.
mod control {
    pub(super) const ENABLE: u16 = 1 << 0;
    pub(super) const MEMORY: u16 = 1 << 3;
    pub(super) const ARI: u16 = 1 << 4;
}

/// Where the capability stands, and what does not change of it.
#[derive(Clone, Debug)]
pub(crate) struct SrIov {
    at: u16,
    total: u16,
    bars: [Option<Bar>; 6],
}

impl SrIov {
    pub(crate) fn new(at: u16, total: u16, of: &[Bar]) -> Self {
        let mut bars = [None; 6];
        for bar in of {
            if let Some(slot) = bars.get_mut(usize::from(bar.index)) {
                *slot = Some(*bar);
            }
        }
        Self { at, total, bars }
    }

    /// What follows the header.
    pub(crate) fn body(
        (total, offset, stride): (u16, u16, u16),
        device: u16,
        of: &[Bar],
    ) -> Vec<u8> {
        // ARI Capable Hierarchy Preserved.
        const PRESERVED: u32 = 1 << 1;
        // 4 KiB, 8 KiB, 64 KiB, 256 KiB, 1 MiB and 4 MiB: those that have to
        // be there.
        const PAGES: u32 = 0x553;
        let mut body = Vec::new();
        body.extend(PRESERVED.to_le_bytes());
        body.extend(control::ARI.to_le_bytes());
        body.extend(0_u16.to_le_bytes());
        for register in [total, total, 0, 0, offset, stride, 0, device] {
            body.extend(register.to_le_bytes());
        }
        body.extend(PAGES.to_le_bytes());
        body.extend(1_u32.to_le_bytes());
        for index in 0..6 {
            let bar = of.iter().find(|bar| bar.index == index);
            body.extend(bar.map_or(0, Bar::flags).to_le_bytes());
        }
        body.extend(0_u32.to_le_bytes());
        body
    }

    /// Enters the number of the physical function itself.
    pub(crate) fn link(&self, config: &mut ConfigSpace, function: u8) {
        let at = self.at.saturating_add(DEPENDENCY_LINK);
        config.define(at, &[function], &[]);
    }

    /// Whether the byte at this offset is one of the capability.
    pub(crate) fn holds(&self, at: usize) -> bool {
        let first = usize::from(self.at);
        (first..first.saturating_add(SIZE.into())).contains(&at)
    }

    fn bar_at(&self, index: u8) -> u16 {
        let bars = self.at.saturating_add(VF_BAR0);
        bars.saturating_add(u16::from(index).saturating_mul(4))
    }
}

impl Endpoint {
    /// TotalVFs; 0 without SR-IOV.
    pub fn total_virtual_functions(&self) -> u16 {
        self.sr_iov.as_ref().map_or(0, |sr_iov| sr_iov.total)
    }

    /// The BARs that each virtual function has; their registers hold the
    /// address of the first function's.
    pub fn virtual_bars(&self) -> impl Iterator<Item = &Bar> {
        let sr_iov = self.sr_iov.iter();
        sr_iov.flat_map(|sr_iov| sr_iov.bars.iter().flatten())
    }

    /// Places a BAR of the virtual functions: they follow each other from
    /// `address` on.
    pub fn set_virtual_bar(&self, index: u8, address: u64) {
        let Some(sr_iov) = &self.sr_iov else {
            return;
        };
        let bar = self.virtual_bars().find(|bar| bar.index == index);
        let Some(bar) = bar else {
            return;
        };
        let value = (address | u64::from(bar.flags())).to_le_bytes();
        let width = match bar.width {
            BarWidth::Bits32 => 4,
            BarWidth::Bits64 => 8,
        };
        let value = value.get(..width).unwrap_or_default();
        self.with_config(|config| config.set(sr_iov.bar_at(index), value));
    }

    /// The address of a BAR of the first virtual function; `None` if they have
    /// no such BAR.
    pub fn virtual_bar_address(&self, index: u8) -> Option<u64> {
        let sr_iov = self.sr_iov.as_ref()?;
        let bar = self.virtual_bars().find(|bar| bar.index == index)?;
        let at = sr_iov.bar_at(index);
        let (low, high) = self.with_config(|config| {
            let high = match bar.width {
                BarWidth::Bits32 => 0,
                BarWidth::Bits64 => config.get32(at.saturating_add(4)),
            };
            (config.get32(at), high)
        });
        Some((u64::from(high) << 32 | u64::from(low)) & !0xf)
    }

    /// Sets NumVFs and VF Enable; 0 takes the virtual functions away. Without
    /// SR-IOV nothing happens.
    pub fn enable_virtual_functions(&self, count: u16) {
        let Some(sr_iov) = &self.sr_iov else {
            return;
        };
        let enabled = match count {
            0 => control::ARI,
            _ => control::ARI | control::ENABLE | control::MEMORY,
        };
        self.with_config(|config| {
            let register = |offset: u16| sr_iov.at.saturating_add(offset);
            config.set(register(NUM_VFS), &count.to_le_bytes());
            config.set(register(CONTROL), &enabled.to_le_bytes());
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Identity;
    use iogate_dma::{Interrupts, Line, Message, Source};
    use std::sync::Arc;

    struct Nowhere;

    impl Interrupts for Nowhere {
        fn message(&self, _: Source, _: Message) {}
        fn line(&self, _: Source, _: Line) {}
    }

    fn endpoint() -> Endpoint {
        let bars = [
            Bar::memory32(1, 0x1000),
            Bar::memory64(4, 0x4000).prefetchable(),
        ];
        Endpoint::builder(Identity::default())
            .express()
            .ari()
            .sr_iov((4, 0x80, 8), 0x1041, &bars)
            .build("0000:01:00.3".parse().unwrap(), Arc::new(Nowhere))
            .unwrap()
    }

    fn read<const N: usize>(endpoint: &Endpoint, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        endpoint.read_config(at, &mut bytes);
        bytes
    }

    /// After ARI, which takes 8 bytes.
    const AT: u64 = 0x108;

    #[test]
    fn the_capability_is_laid_out_as_specified() {
        let endpoint = endpoint();
        assert_eq!(read(&endpoint, 0x100), 0x1081_000e_u32.to_le_bytes());
        assert_eq!(read(&endpoint, AT), 0x0001_0010_u32.to_le_bytes());
        assert_eq!(read(&endpoint, AT + 0x0c), [4, 0, 4, 0], "Initial, Total");
        assert_eq!(read(&endpoint, AT + 0x10), [0, 0, 3, 0], "Num, link");
        assert_eq!(read(&endpoint, AT + 0x14), [0x80, 0, 8, 0]);
        assert_eq!(read(&endpoint, AT + 0x1a), [0x41, 0x10]);
        assert_eq!(read(&endpoint, AT + 0x1c), 0x553_u32.to_le_bytes());
        assert_eq!(read(&endpoint, AT + 0x20), 1_u32.to_le_bytes());
        assert_eq!(read(&endpoint, AT + 0x34), [0x0c, 0, 0, 0], "64 bits");
    }

    #[test]
    fn software_cannot_write_it_and_a_reset_keeps_what_was_enabled() {
        let endpoint = endpoint();
        let _ = endpoint.write_config(AT + 8, &[0xff; 0x38]);
        assert_eq!(read(&endpoint, AT + 8), [0x10, 0]);
        endpoint.enable_virtual_functions(2);
        endpoint.set_virtual_bar(4, 0x38_0000_4000);
        endpoint.reset();
        assert_eq!(read(&endpoint, AT + 8), [0x19, 0]);
        assert_eq!(read(&endpoint, AT + 0x10), [2, 0]);
        assert_eq!(endpoint.virtual_bar_address(4), Some(0x38_0000_4000));
        assert_eq!(endpoint.virtual_bar_address(0), None);
        endpoint.enable_virtual_functions(0);
        assert_eq!(read(&endpoint, AT + 8), [0x10, 0]);
    }
}
