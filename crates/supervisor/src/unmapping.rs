//! Calls by which a program takes its own memory away, as ranges of addresses.

use iogate_memory::Process;

use crate::listener::Call;

/// madvise(2) values after which the bytes are no longer those that were
/// there: MADV_DONTNEED, MADV_FREE, MADV_REMOVE, MADV_DONTNEED_LOCKED.
pub(crate) const DISCARDING: [i32; 4] =
    [libc::MADV_DONTNEED, libc::MADV_FREE, libc::MADV_REMOVE, 24];

const PAGE: u64 = 4096;

/// A range of addresses, the last byte included.
pub(crate) type Range = (u64, u64);

/// The bytes from `first` on, `length` rounded up to whole pages; `None` if
/// the kernel would refuse it.
fn pages(first: u64, length: u64) -> Option<Range> {
    let length = length.checked_next_multiple_of(PAGE)?;
    let last = first.checked_add(length)?.checked_sub(1)?;
    (first.is_multiple_of(PAGE) && length > 0).then_some((first, last))
}

/// What `call` is about to take away: at most two ranges. Nothing if the
/// kernel will refuse the call.
pub(crate) fn taken_away(call: &Call, memory: &Process) -> [Option<Range>; 2] {
    let argument = |index| call.argument(index);
    match call.number() {
        libc::SYS_munmap => [pages(argument(0), argument(1)), None],
        libc::SYS_mmap if call.int(3) & libc::MAP_FIXED != 0 => {
            [pages(argument(0), argument(1)), None]
        }
        libc::SYS_madvise if DISCARDING.contains(&call.int(2)) => {
            [pages(argument(0), argument(1)), None]
        }
        libc::SYS_mremap => moved(call, memory),
        libc::SYS_brk => [shrunk_heap(argument(0), memory), None],
        libc::SYS_shmdt => [segment(argument(0), memory), None],
        _ => [None, None],
    }
}

fn moved(call: &Call, memory: &Process) -> [Option<Range>; 2] {
    let argument = |index| call.argument(index);
    let (from, old, new) = (argument(0), argument(1), argument(2));
    let flags = call.int(3);
    let whole = pages(from, old);
    if flags & libc::MREMAP_FIXED != 0 {
        return [whole, pages(argument(4), new)];
    }
    if flags & libc::MREMAP_DONTUNMAP != 0 {
        return [whole, None];
    }
    let (Some((_, last)), Some((_, new_last))) = (whole, pages(from, new)) else {
        return [None, None];
    };
    if new_last < last {
        return [new_last.checked_add(1).map(|first| (first, last)), None];
    }
    // It grows: where the next mapping stands in the way it will move.
    let next = last.saturating_add(1);
    let moves = new_last > last
        && flags & libc::MREMAP_MAYMOVE != 0
        && mapped_within(memory, next, new_last);
    [whole.filter(|_| moves), None]
}

/// Whether a mapping stands at the first or the last byte.
fn mapped_within(memory: &Process, first: u64, last: u64) -> bool {
    memory.vma_at(first).is_ok() || memory.vma_at(last).is_ok()
}

/// A new end of the heap inside a mapping takes the rest of it away.
fn shrunk_heap(end: u64, memory: &Process) -> Option<Range> {
    let first = end.checked_next_multiple_of(PAGE).filter(|end| *end > 0)?;
    let heap = memory.vma_at(first).ok().filter(|heap| !heap.is_file())?;
    // brk never moves the end below the heap's start.
    (heap.start < first || end == heap.start).then_some((first, heap.end.checked_sub(1)?))
}

/// The mappings of the segment attached at `address`.
fn segment(address: u64, memory: &Process) -> Option<Range> {
    let start = memory
        .vma_at(address)
        .ok()
        .filter(|vma| vma.start == address)?;
    let mut end = start.end;
    while let Ok(next) = memory.vma_at(end) {
        let same = (next.device, next.inode) == (start.device, start.inode);
        if !same || start.inode == 0 || next.end <= end {
            break;
        }
        end = next.end;
    }
    Some((address, end.checked_sub(1)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_whole_pages_and_never_wraps() {
        assert_eq!(pages(0x1000, 1), Some((0x1000, 0x1fff)));
        assert_eq!(pages(0x1001, 1), None);
        assert_eq!(pages(0x1000, 0), None);
        assert_eq!(pages(u64::MAX - 4095, 4096), None);
        assert_eq!(pages(0, u64::MAX), None);
    }
}
