//! A function that stands on the root bus itself: a Root Complex Integrated
//! Endpoint, and the capabilities that a guest's kernel switches there.
//!
//! Behind VFIO the kernel switches them and a program does not see it; a guest
//! is its own kernel.

use std::sync::atomic::Ordering;

use crate::Endpoint;
use crate::config::{extended, register};

/// Offsets in the PCI Express capability. PCI Express Base 6.0 section 7.5.3.
mod express {
    pub(super) const FLAGS: u16 = 2;
    /// Device/Port Type of a Root Complex Integrated Endpoint.
    pub(super) const INTEGRATED: u16 = 9 << 4;
    pub(super) const TYPE: u16 = 0xf << 4;
    /// Where registers about a link stand, 8 bytes each.
    pub(super) const LINK: [u16; 2] = [0x0c, 0x2c];
}

/// Offset of the control register in the ATS capability, and its bits: the
/// smallest translation unit and Enable. PCI Express Base 6.0 section 10.5.1.
const ATS_CONTROL: u16 = 6;
const ATS_WRITABLE: u16 = 1 << 15 | 0x1f;
/// Invalidate Queue Depth 0 (32 requests), Page Aligned Request.
const ATS_CAPABILITY: u16 = 1 << 5;

/// Offset of the control register in the PASID capability; bit 0 is Enable.
const PASID_CONTROL: u16 = 6;

/// The most bytes that an extended capability of ours has.
const LONGEST: u16 = 0x40;

impl Endpoint {
    /// Makes the function one that is integrated in the root complex, with
    /// Address Translation Services if `ats`, and lets software enable its
    /// PASIDs. For whoever puts a machine together, before anybody looks.
    pub fn integrate(&self, ats: bool) {
        let express = self.express();
        let at = self.with_config(|config| {
            if let Some(at) = express {
                let flags = at.saturating_add(express::FLAGS);
                let value = config.get16(flags) & !express::TYPE | express::INTEGRATED;
                config.define(flags, &value.to_le_bytes(), &[]);
                for offset in express::LINK {
                    config.define(at.saturating_add(offset), &[0; 8], &[]);
                }
            }
            if let Some((pasid, _)) = self.pasid_capability() {
                config.define(pasid.saturating_add(PASID_CONTROL), &[0], &[1]);
            }
            if !ats {
                return 0;
            }
            let at = config.append_extended(LONGEST);
            let header = u32::from(extended::ATS) | 1 << 16;
            config.define(at, &header.to_le_bytes(), &[]);
            let control = at.saturating_add(ATS_CONTROL);
            let capability = ATS_CAPABILITY.to_le_bytes();
            config.define(at.saturating_add(4), &capability, &[]);
            config.define(control, &[0; 2], &ATS_WRITABLE.to_le_bytes());
            control
        });
        self.ats_control.store(at, Ordering::SeqCst);
    }

    /// Whether software has enabled Address Translation Services.
    pub fn ats_enabled(&self) -> bool {
        match self.ats_control.load(Ordering::SeqCst) {
            0 => false,
            at => self.with_config(|config| config.get16(at) & 1 << 15 != 0),
        }
    }

    /// Takes over what software wrote to the PASID capability of an integrated
    /// function.
    pub(crate) fn settle_pasids(&self) {
        let Some((at, width)) = self.pasid_capability() else {
            return;
        };
        let control = at.saturating_add(PASID_CONTROL);
        let (enabled, switchable) = self.with_config(|config| {
            let enabled = config.get8(control) & 1 != 0;
            (enabled, config.is_writable(control, 1))
        });
        if switchable {
            let bits = if enabled { width } else { 0 };
            self.set_pasid_bits(bits);
        }
    }
}

impl crate::config::ConfigSpace {
    /// Where a further extended capability stands, which the last one points to
    /// from now on. None of those that are there has more than `longest` bytes.
    fn append_extended(&mut self, longest: u16) -> u16 {
        let mut last = register::EXTENDED;
        if self.get32(last) == 0 {
            return last;
        }
        // Ours are in ascending order.
        for _ in 0..64 {
            let [_, _, low, high] = self.get32(last).to_le_bytes();
            let next = u16::from_le_bytes([low, high]) >> 4;
            if next <= last {
                break;
            }
            last = next;
        }
        let at = last.saturating_add(longest);
        let header = self.get32(last) & 0x000f_ffff | u32::from(at) << 20;
        self.define(last, &header.to_le_bytes(), &[]);
        at
    }
}
