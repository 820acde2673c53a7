//! Reads and writes of the descriptor over which a device's state flows.

use iogate_host::{Direction, FileId, Host};

use crate::trace::Told;
use crate::{Answer, Client, Errno};

/// Pieces of one vector call. include/uapi/linux/uio.h, UIO_MAXIOV.
const PIECES: usize = 1024;

/// Bytes that are moved at a time.
const CHUNK: usize = 4096;

/// read(2) and readv(2) of a descriptor of a migration's data: how many bytes
/// were read, 0 at the end. EBADF for one to write to, ENODEV when its
/// transfer is over, ENOMSG when there is no more before STOP_COPY, EFAULT.
pub(crate) fn read(
    host: &Host,
    file: FileId,
    pieces: &[(u64, u64)],
    client: &dyn Client,
) -> Result<Answer, Errno> {
    let result = transfer(host, file, Direction::Saving, pieces, |address, length| {
        host.migration_read(file, length, |bytes| Ok(client.write(address, bytes)?))
    });
    tracing::event!(
        name: "migration_read",
        target: "iogate",
        tracing::Level::INFO,
        file = file.0,
        result = %Told(&result),
    );
    result
}

/// write(2) and writev(2), as [`read`]: EINVAL for what cannot be a state
/// of the device, after which its transfer takes no more.
pub(crate) fn write(
    host: &Host,
    file: FileId,
    pieces: &[(u64, u64)],
    client: &dyn Client,
) -> Result<Answer, Errno> {
    let result = transfer(
        host,
        file,
        Direction::Resuming,
        pieces,
        |address, length| {
            let mut bytes = [0; CHUNK];
            let bytes = bytes.get_mut(..length.min(CHUNK)).unwrap_or_default();
            client.read(address, bytes)?;
            host.migration_write(file, bytes)?;
            Ok(bytes.len())
        },
    );
    tracing::event!(
        name: "migration_write",
        target: "iogate",
        tracing::Level::INFO,
        file = file.0,
        result = %Told(&result),
    );
    result
}

/// Moves all pieces until one is cut short; an error counts only if nothing
/// was moved before it.
fn transfer(
    host: &Host,
    file: FileId,
    wanted: Direction,
    pieces: &[(u64, u64)],
    mut part: impl FnMut(u64, usize) -> Result<usize, Errno>,
) -> Result<Answer, Errno> {
    if host.migration_direction(file) != Some(wanted) {
        return Err(Errno::EBADF);
    }
    let mut total = 0_u64;
    for (_, length) in pieces {
        total = total.checked_add(*length).ok_or(Errno::EINVAL)?;
    }
    if pieces.len() > PIECES || i64::try_from(total).is_err() {
        return Err(Errno::EINVAL);
    }
    let mut done = 0_usize;
    // Without a byte to move, the transfer may be over all the same.
    let empty = [(0, 0)];
    let pieces = if total == 0 { &empty } else { pieces };
    for &(address, length) in pieces
        .iter()
        .filter(|(_, length)| total == 0 || *length != 0)
    {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let mut moved = 0_usize;
        loop {
            let at = address.wrapping_add(u64::try_from(moved).unwrap_or(0));
            match part(at, length.saturating_sub(moved)) {
                Ok(now) => moved = moved.saturating_add(now),
                // A refused write takes back what it brought.
                Err(errno) if done == 0 && (moved == 0 || wanted == Direction::Resuming) => {
                    return Err(errno);
                }
                Err(_) => return Ok(answer(done.saturating_add(moved))),
            }
            // Reads give all that there is at once.
            if moved >= length || wanted == Direction::Saving {
                break;
            }
        }
        done = done.saturating_add(moved);
        if moved < length {
            break;
        }
    }
    Ok(answer(done))
}

fn answer(done: usize) -> Answer {
    Answer::value(i64::try_from(done).unwrap_or(i64::MAX))
}
