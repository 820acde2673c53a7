//! read(2), readv(2), write(2) and writev(2) of files without a position. Linux
//! `fs/read_write.c`, `vfs_read` and `vfs_write`: EINVAL where the file has no
//! such operation.

use iogate_host::{FileId, FileKind, Host};

use crate::iommufd::fault;
use crate::{Answer, Client, Errno, data};

/// A read of `file` into `pieces`, each an address and a length in the client:
/// how many bytes were read. EINVAL for a file that is not read so, EBADF for
/// none.
pub fn read_stream(
    host: &Host,
    file: FileId,
    pieces: &[(u64, u64)],
    client: &dyn Client,
) -> Result<Answer, Errno> {
    match host.kind(file) {
        Some(FileKind::Migration { .. }) => data::read(host, file, pieces, client),
        Some(FileKind::FaultQueue) => fault::read(host, file, pieces, client),
        _ => refused(host, file),
    }
}

/// A write to `file`, as [`read_stream`].
pub fn write_stream(
    host: &Host,
    file: FileId,
    pieces: &[(u64, u64)],
    client: &dyn Client,
) -> Result<Answer, Errno> {
    match host.kind(file) {
        Some(FileKind::Migration { .. }) => data::write(host, file, pieces, client),
        Some(FileKind::FaultQueue) => fault::write(host, file, pieces, client),
        _ => refused(host, file),
    }
}

fn refused(host: &Host, file: FileId) -> Result<Answer, Errno> {
    match host.kind(file) {
        Some(_) => Err(Errno::EINVAL),
        None => Err(Errno::EBADF),
    }
}
