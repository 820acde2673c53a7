//! Where a file's bytes are in the addresses that its symbols use. ELF-64
//! Object File Format, version 1.5, figures 2 and 6.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Program headers that are looked at.
const MOST_HEADERS: u64 = 256;

/// The loaded parts of an ELF file: offset, address, bytes.
pub(super) struct Segments(Vec<(u64, u64, u64)>);

impl Segments {
    pub(super) fn read(path: &Path) -> Option<Self> {
        const LOAD: u32 = 1;
        let file = File::open(path).ok()?;
        let mut header = [0; 64];
        file.read_exact_at(&mut header, 0).ok()?;
        if !header.starts_with(b"\x7fELF\x02\x01") {
            return None;
        }
        let (table, size) = (u64_at(&header, 32)?, u64::from(u16_at(&header, 54)?));
        let count = u64::from(u16_at(&header, 56)?).min(MOST_HEADERS);
        let mut segments = Vec::new();
        for index in 0..count {
            let mut entry = [0; 56];
            let at = table.checked_add(index.checked_mul(size)?)?;
            file.read_exact_at(&mut entry, at).ok()?;
            let kind = entry.first_chunk().map(|kind| u32::from_le_bytes(*kind));
            if kind == Some(LOAD) {
                let of = |at| u64_at(&entry, at);
                segments.push((of(8)?, of(16)?, of(32)?));
            }
        }
        Some(Self(segments))
    }

    /// The address of the byte at this offset of the file.
    pub(super) fn address(&self, offset: u64) -> Option<u64> {
        let mut segments = self.0.iter();
        segments.find_map(|(first, address, length)| {
            let into = offset.checked_sub(*first)?;
            (into < *length).then(|| address.wrapping_add(into))
        })
    }
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u64::from_le_bytes(*bytes))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_le_bytes(*bytes))
}
