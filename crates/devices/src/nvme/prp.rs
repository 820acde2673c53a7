//! Physical Region Pages: where the data of a command lies. NVM Express 1.4
//! section 4.3.

use super::buffer::Paths;
use super::spec::completion::Status;
use super::worker::Stop;
use iogate_dma::Iova;

/// Bytes of a memory page; the controller supports no other size.
pub(super) const PAGE: u64 = 4096;

/// A contiguous piece of a command's data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Segment {
    pub(super) address: u64,
    pub(super) length: u64,
}

/// Collects the segments of `length` bytes of data, at most a controller's
/// maximum transfer. Entries that continue each other become one segment.
/// Every list page but the first gives at least 511 entries, so that a chain
/// of lists is no longer than the data wants.
pub(super) fn gather(
    bus: &mut Paths<'_>,
    (prp1, prp2): (u64, u64),
    length: u64,
    segments: &mut Vec<Segment>,
) -> Result<(), Stop> {
    segments.clear();
    if prp1 & 3 != 0 {
        return Err(Stop::Status(Status::PRP_OFFSET));
    }
    let first = PAGE.saturating_sub(prp1 % PAGE).min(length);
    push(segments, prp1, first);
    let mut rest = length.saturating_sub(first);
    if rest == 0 {
        return Ok(());
    }
    if rest <= PAGE {
        push(segments, aligned(prp2)?, rest);
        return Ok(());
    }
    let mut list = prp2;
    if list & 7 != 0 {
        return Err(Stop::Status(Status::PRP_OFFSET));
    }
    while rest != 0 {
        let wanted = rest.div_ceil(PAGE);
        let entries = (PAGE.saturating_sub(list % PAGE) / 8).min(wanted);
        let mut page = [0; 4096];
        let bytes = usize::try_from(entries.saturating_mul(8)).unwrap_or_default();
        let page = page.get_mut(..bytes).unwrap_or_default();
        bus.read(Iova(list), page)?;
        let (entries, _) = page.as_chunks::<8>();
        let mut entries = entries.iter().map(|bytes| u64::from_le_bytes(*bytes));
        // When more entries are wanted than fit, the last points to the next
        // list.
        let next = match u64::try_from(entries.len()) {
            Ok(count) if count < wanted => entries.next_back(),
            _ => None,
        };
        for entry in entries {
            let now = rest.min(PAGE);
            push(segments, aligned(entry)?, now);
            rest = rest.saturating_sub(now);
        }
        match next {
            Some(next) => list = aligned(next)?,
            None => break,
        }
    }
    Ok(())
}

fn aligned(entry: u64) -> Result<u64, Stop> {
    match entry % PAGE {
        0 => Ok(entry),
        _ => Err(Stop::Status(Status::PRP_OFFSET)),
    }
}

fn push(segments: &mut Vec<Segment>, address: u64, length: u64) {
    if let Some(last) = segments.last_mut()
        && last.address.checked_add(last.length) == Some(address)
    {
        last.length = last.length.saturating_add(length);
    } else {
        segments.push(Segment { address, length });
    }
}
