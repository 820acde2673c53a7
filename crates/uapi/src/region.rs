//! Reads, writes and mappings of device files. Linux
//! `drivers/vfio/pci/vfio_pci_core.c`, `vfio_pci_rw` and
//! `vfio_pci_core_mmap`.

use iogate_host::{Actor, FileId, FileKind, Host, Region, Retired};

use crate::{Answer, Client, Errno, calls};

/// Bit 52 marks offsets of ours, so that a filter sees them; the region's index
/// stands from bit 40 up, as in the kernel.
const OURS: u64 = 1 << 52;
/// Regions of which each access is executed stand above those of plain memory:
/// a device's file holds the latter and ends before the former.
const EXECUTED: u64 = 1 << 51;
const INDEX_SHIFT: u32 = 40;

/// Pieces of one vector call. include/uapi/linux/uio.h, UIO_MAXIOV.
const PIECES: usize = 1024;

/// Bytes that one call moves at most. include/linux/fs.h, MAX_RW_COUNT.
const MOST: u64 = 0x7fff_f000;

/// Bytes that are moved at a time.
const CHUNK: usize = 4096;

/// Where a device file has the region with this index, if it is no plain
/// memory.
pub const fn region_offset(index: u32) -> u64 {
    EXECUTED | memory_offset(index)
}

/// Where a device file has the region with this index, if it is plain memory
/// ([`RegionInfo::is_memory`](iogate_host::RegionInfo::is_memory)).
pub const fn memory_offset(index: u32) -> u64 {
    OURS | (index as u64) << INDEX_SHIFT
}

/// The region and the offset in it that an offset in a device file means; the
/// marks may be missing. EINVAL beyond the last region.
pub(crate) fn region_and_offset(offset: u64) -> Result<(Region, u64), Errno> {
    let (index, at) = region_of(offset);
    Ok((Region::from_index(index)?, at))
}

/// The index of the region, and the offset in it, that an offset in a device
/// file means.
pub const fn region_of(offset: u64) -> (u64, u64) {
    (
        (offset & !(OURS | EXECUTED)) >> INDEX_SHIFT,
        offset & ((1 << INDEX_SHIFT) - 1),
    )
}

/// The device behind `file`: EINVAL for a file that cannot be read or written,
/// ESPIPE for one without offsets, EBADF for none.
fn device(host: &Host, file: FileId) -> Result<usize, Errno> {
    host.device_access(file)
        .map_err(|error| match host.kind(file) {
            Some(FileKind::Migration { .. } | FileKind::FaultQueue) => Errno::ESPIPE,
            Some(_) => error.into(),
            None => Errno::EBADF,
        })
}

/// pread(2) and preadv(2) of `file` at `offset` into `pieces`, each an address
/// and a length in the client: how many bytes were read. EIO while the
/// device's memory does not answer, EINVAL past the end of a BAR, EFAULT.
pub fn read(
    host: &Host,
    file: FileId,
    offset: u64,
    pieces: &[(u64, u64)],
    client: &dyn Client,
) -> Result<Answer, Errno> {
    if let Some(answer) = interposed(host, file, "region_read", client) {
        return Ok(answer);
    }
    let result = transfer(
        host,
        file,
        offset,
        pieces,
        |device, region, at, address, part| {
            host.region_read(device, region, at, part)?;
            client.write(address, part)?;
            Ok(Retired::default())
        },
    );
    tell(&result, file, offset, Direction::Read);
    result
}

/// pwrite(2) and pwritev(2), as [`read`].
pub fn write(
    host: &Host,
    file: FileId,
    offset: u64,
    pieces: &[(u64, u64)],
    client: &dyn Client,
) -> Result<Answer, Errno> {
    if let Some(answer) = interposed(host, file, "region_write", client) {
        return Ok(answer);
    }
    let result = transfer(
        host,
        file,
        offset,
        pieces,
        |device, region, at, address, part| {
            client.read(address, part)?;
            Ok(host.region_write(device, region, at, part)?)
        },
    );
    tell(&result, file, offset, Direction::Write);
    result
}

fn interposed(
    host: &Host,
    file: FileId,
    name: &'static str,
    client: &dyn Client,
) -> Option<Answer> {
    host.interposer()?;
    calls::interposed(host, host.kind(file)?, name, client)
}

/// A load by the thread `by`, which waits, of a mapping of `file` at `offset`:
/// fills `into`. EIO while the device's memory does not answer, EINVAL outside
/// of a mappable BAR.
pub fn load(
    host: &Host,
    file: FileId,
    offset: u64,
    into: &mut [u8],
    by: Actor,
) -> Result<Answer, Errno> {
    refuse(host, file, "region_read", by)?;
    let result = mapped(host, file, offset, into.len(), |device, region, at| {
        host.region_read(device, region, at, into)?;
        Ok(Retired::default())
    });
    tell(&result, file, offset, Direction::Read);
    result
}

/// A store to a mapping of `file`, as [`load`].
pub fn store(
    host: &Host,
    file: FileId,
    offset: u64,
    from: &[u8],
    by: Actor,
) -> Result<Answer, Errno> {
    refuse(host, file, "region_write", by)?;
    let result = mapped(host, file, offset, from.len(), |device, region, at| {
        Ok(host.region_write(device, region, at, from)?)
    });
    tell(&result, file, offset, Direction::Write);
    result
}

/// The errno that an access of a mapping is to come to instead.
fn refuse(host: &Host, file: FileId, name: &'static str, by: Actor) -> Result<(), Errno> {
    let kind = host.interposer().and_then(|_| host.kind(file));
    match kind.and_then(|kind| calls::interposed_by(host, kind, name, by)) {
        Some(errno) => Err(errno),
        None => Ok(()),
    }
}

fn mapped(
    host: &Host,
    file: FileId,
    offset: u64,
    length: usize,
    access: impl FnOnce(usize, Region, u64) -> Result<Retired, Errno>,
) -> Result<Answer, Errno> {
    let device = device(host, file)?;
    let (region, at) = region_and_offset(offset)?;
    let bytes = u64::try_from(length).map_err(|_| Errno::EINVAL)?;
    host.check_mmap(device, region, at, bytes)?;
    let retired = access(device, region, at)?;
    Ok(Answer {
        value: i64::try_from(length).unwrap_or(i64::MAX),
        after: retired.into(),
        ..Answer::default()
    })
}

enum Direction {
    Read,
    Write,
}

fn tell(result: &Result<Answer, Errno>, file: FileId, offset: u64, direction: Direction) {
    let result = crate::trace::Told(result);
    match direction {
        Direction::Read => tracing::event!(
            name: "region_read",
            target: "iogate",
            tracing::Level::INFO,
            file = file.0,
            offset = format_args!("{offset:#x}"),
            %result,
        ),
        Direction::Write => tracing::event!(
            name: "region_write",
            target: "iogate",
            tracing::Level::INFO,
            file = file.0,
            offset = format_args!("{offset:#x}"),
            %result,
        ),
    }
}

/// Moves all pieces, one after the other as the kernel does for a driver
/// without vector operations: a piece that fails ends the call, with what went
/// before or, if that is nothing, with the error. `do_loop_readv_writev`.
fn transfer(
    host: &Host,
    file: FileId,
    offset: u64,
    pieces: &[(u64, u64)],
    mut part: impl FnMut(usize, Region, u64, u64, &mut [u8]) -> Result<Retired, Errno>,
) -> Result<Answer, Errno> {
    let device = device(host, file)?;
    let total = pieces
        .iter()
        .try_fold(0_u64, |sum, (_, length)| sum.checked_add(*length));
    if pieces.len() > PIECES || total.is_none_or(|total| i64::try_from(total).is_err()) {
        return Err(Errno::EINVAL);
    }
    let mut retired = Retired::default();
    let mut done = 0_u64;
    for &(address, length) in pieces {
        let length = length.min(MOST.saturating_sub(done));
        if length == 0 {
            continue;
        }
        let at = offset.checked_add(done).ok_or(Errno::EINVAL)?;
        let moved = region_and_offset(at).and_then(|(region, at)| {
            let allowed = host.region_length(device, region, at, length)?;
            let run = |at, address, bytes: &mut [u8]| part(device, region, at, address, bytes);
            chunks(at, address, allowed, &mut retired, run)?;
            Ok(allowed)
        });
        match moved {
            Ok(moved) => {
                done = done.saturating_add(moved);
                if moved < length {
                    break;
                }
            }
            Err(errno) if done == 0 => {
                let leaves = retired.grace.is_some() || retired.work.is_some();
                return match leaves {
                    true => Ok(Answer::failed(errno, retired.into())),
                    false => Err(errno),
                };
            }
            Err(_) => break,
        }
    }
    Ok(Answer {
        value: i64::try_from(done).unwrap_or(i64::MAX),
        after: retired.into(),
        ..Answer::default()
    })
}

/// Moves `length` bytes, no more than a chunk at a time, cut where the region's
/// offset is a multiple of it, so that no aligned access is torn.
fn chunks(
    mut at: u64,
    mut address: u64,
    length: u64,
    retired: &mut Retired,
    mut run: impl FnMut(u64, u64, &mut [u8]) -> Result<Retired, Errno>,
) -> Result<(), Errno> {
    let mut left = usize::try_from(length).map_err(|_| Errno::EINVAL)?;
    // A register access must not pay for clearing a page.
    let (mut small, mut large);
    let buffer: &mut [u8] = if left <= 8 {
        small = [0; 8];
        &mut small
    } else {
        large = [0; CHUNK];
        &mut large
    };
    while left > 0 {
        let [low, high, ..] = at.to_le_bytes();
        let into = usize::from(u16::from_le_bytes([low, high])) % CHUNK;
        let size = left.min(CHUNK.saturating_sub(into)).min(buffer.len());
        let part = buffer.get_mut(..size).unwrap_or_default();
        retired.merge(run(at, address, part)?);
        let moved = u64::try_from(size).unwrap_or(u64::MAX);
        at = at.saturating_add(moved);
        address = address.wrapping_add(moved);
        left = left.saturating_sub(size);
    }
    Ok(())
}

/// Bits of mmap's flags that say how changes are shared, and the two values
/// that share them. include/uapi/linux/mman.h.
const MAP_TYPE: u32 = 0xf;
const MAP_SHARED: u32 = 1;
const MAP_SHARED_VALIDATE: u32 = 3;

/// What the kernel would say to mmap(2) of `length` bytes, whole pages, of
/// `file` at `offset`: ENODEV for files that cannot be mapped, EINVAL for a
/// private mapping, for anything but a mappable BAR's own bytes, and for an
/// offset that is not where the device file has them. Every protection is
/// allowed.
pub fn mmap(
    host: &Host,
    file: FileId,
    offset: u64,
    length: u64,
    protection: u32,
    flags: u32,
) -> Result<(), Errno> {
    let result = check_mmap(host, file, offset, length, flags);
    let told = result.map(|()| Answer::value(0));
    tracing::event!(
        name: "region_mmap",
        target: "iogate",
        tracing::Level::INFO,
        file = file.0,
        offset = format_args!("{offset:#x}"),
        length = format_args!("{length:#x}"),
        protection,
        result = %crate::trace::Told(&told),
    );
    result
}

fn check_mmap(
    host: &Host,
    file: FileId,
    offset: u64,
    length: u64,
    flags: u32,
) -> Result<(), Errno> {
    match host.kind(file) {
        Some(FileKind::Device(_)) => {}
        Some(_) => return Err(Errno::ENODEV),
        None => return Err(Errno::EBADF),
    }
    let device = host.device_access(file)?;
    let executed = offset & EXECUTED != 0;
    let (region, offset) = region_and_offset(offset)?;
    if !matches!(flags & MAP_TYPE, MAP_SHARED | MAP_SHARED_VALIDATE) {
        return Err(Errno::EINVAL);
    }
    host.check_mmap(device, region, offset, length)?;
    // What is mapped is what the offset names in the file itself.
    match host.region_info(device, region)?.is_memory == executed {
        true => Err(Errno::EINVAL),
        false => Ok(()),
    }
}
