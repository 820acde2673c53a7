//! Where a namespace keeps its bytes: memory or a file.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Why storage did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// No more may be written to storage that is thinly provisioned.
    #[error("the storage is full")]
    Full,
    /// The file failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

/// The bytes of a namespace. Callers stay within [`size`](Self::size).
pub trait Storage: Send + Sync {
    /// Bytes.
    fn size(&self) -> u64;
    /// Fills `into` from byte `offset` on.
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), StorageError>;
    /// Writes `from` to byte `offset` on.
    fn write(&self, offset: u64, from: &[u8]) -> Result<(), StorageError>;
    /// Makes `length` bytes from `offset` on read as zeros.
    fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), StorageError>;
    /// The bytes are of no use any more; what they read as afterwards is what
    /// they were or zeros.
    fn discard(&self, _offset: u64, _length: u64) {}
    /// Makes everything written so far outlive the machine.
    fn flush(&self) -> Result<(), StorageError>;
}

/// Bytes that are allocated together.
const CHUNK: u64 = 64 << 10;

/// Storage in memory: what was never written takes none.
///
/// It holds at most [`LIMIT`](Self::LIMIT) bytes of written data, whatever its
/// size; a write beyond that fails with [`StorageError::Full`]. Zeroing or
/// discarding whole chunks of 64 KiB gives their memory back.
pub struct Sparse {
    size: u64,
    chunks: Mutex<BTreeMap<u64, Box<[u8]>>>,
}

impl Sparse {
    /// The most memory that one namespace takes: 4 GiB.
    pub const LIMIT: u64 = 4 << 30;

    /// `size` bytes that read as zeros.
    pub fn new(size: u64) -> Self {
        Self {
            size,
            chunks: Mutex::default(),
        }
    }

    /// Bytes of memory in use.
    pub fn resident(&self) -> u64 {
        let chunks = u64::try_from(self.lock().len()).unwrap_or(u64::MAX);
        chunks.saturating_mul(CHUNK)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Box<[u8]>>> {
        self.chunks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The pieces of `length` bytes from `offset` on that lie in one chunk each:
/// chunk, first byte in it, bytes.
fn pieces(offset: u64, length: u64) -> impl Iterator<Item = (u64, usize, usize)> {
    let (mut at, end) = (offset, offset.saturating_add(length));
    std::iter::from_fn(move || {
        let inside = at % CHUNK;
        let now = CHUNK.saturating_sub(inside).min(end.checked_sub(at)?);
        let piece = (
            at / CHUNK,
            usize::try_from(inside).ok()?,
            usize::try_from(now).ok()?,
        );
        at = at.saturating_add(now);
        (now != 0).then_some(piece)
    })
}

fn part(chunk: &mut [u8], first: usize, length: usize) -> &mut [u8] {
    let rest = chunk.get_mut(first..).unwrap_or_default();
    rest.get_mut(..length).unwrap_or_default()
}

impl Storage for Sparse {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), StorageError> {
        let mut chunks = self.lock();
        let length = u64::try_from(into.len()).unwrap_or(u64::MAX);
        let mut rest = into;
        for (index, first, length) in pieces(offset, length) {
            let Some((now, later)) = rest.split_at_mut_checked(length) else {
                break;
            };
            match chunks.get_mut(&index) {
                Some(chunk) => now.copy_from_slice(part(chunk, first, length)),
                None => now.fill(0),
            }
            rest = later;
        }
        Ok(())
    }

    fn write(&self, offset: u64, from: &[u8]) -> Result<(), StorageError> {
        let mut chunks = self.lock();
        let length = u64::try_from(from.len()).unwrap_or(u64::MAX);
        let mut rest = from;
        for (index, first, length) in pieces(offset, length) {
            let Some((now, later)) = rest.split_at_checked(length) else {
                break;
            };
            rest = later;
            let held = u64::try_from(chunks.len()).unwrap_or(u64::MAX);
            if !chunks.contains_key(&index) && held >= Self::LIMIT / CHUNK {
                return Err(StorageError::Full);
            }
            let chunk = chunks.entry(index).or_insert_with(|| {
                let bytes = usize::try_from(CHUNK).unwrap_or_default();
                vec![0; bytes].into_boxed_slice()
            });
            part(chunk, first, length).copy_from_slice(now);
        }
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        let mut chunks = self.lock();
        for (index, first, length) in pieces(offset, length) {
            if u64::try_from(length) == Ok(CHUNK) {
                chunks.remove(&index);
            } else if let Some(chunk) = chunks.get_mut(&index) {
                part(chunk, first, length).fill(0);
            }
        }
        Ok(())
    }

    fn discard(&self, offset: u64, length: u64) {
        let end = offset.saturating_add(length) / CHUNK;
        let first = offset.div_ceil(CHUNK);
        if first < end {
            let mut chunks = self.lock();
            chunks.extract_if(first..end, |_, _| true).for_each(drop);
        }
    }

    fn flush(&self) -> Result<(), StorageError> {
        Ok(())
    }
}

/// Storage in a file.
pub struct Backed {
    size: u64,
    file: File,
}

impl Backed {
    /// The first `size` bytes of an existing file, or all of it. It is opened
    /// for reading and writing and must be at least that long.
    pub fn open(path: &Path, size: Option<u64>) -> std::io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let length = file.metadata()?.len();
        let size = size.unwrap_or(length);
        if length < size {
            return Err(std::io::Error::other(format!(
                "it has {length} bytes, fewer than the size of {size}"
            )));
        }
        Ok(Self { size, file })
    }
}

impl Storage for Backed {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), StorageError> {
        Ok(self.file.read_exact_at(into, offset)?)
    }

    fn write(&self, offset: u64, from: &[u8]) -> Result<(), StorageError> {
        Ok(self.file.write_all_at(from, offset)?)
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), StorageError> {
        static ZEROS: [u8; 64 << 10] = [0; 64 << 10];
        for (index, first, length) in pieces(offset, length) {
            let at = index.saturating_mul(CHUNK);
            let at = at.saturating_add(u64::try_from(first).unwrap_or_default());
            self.write(at, ZEROS.get(..length).unwrap_or_default())?;
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), StorageError> {
        Ok(self.file.sync_data()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_taken_only_for_what_is_written_and_given_back_by_zeroing() {
        let storage = Sparse::new(1 << 40);
        let mut bytes = [1; 4];
        storage.read((1 << 40) - 4, &mut bytes).unwrap();
        assert_eq!((bytes, storage.resident()), ([0; 4], 0));
        storage.write(CHUNK * 5 - 2, &[1, 2, 3, 4]).unwrap();
        storage.read(CHUNK * 5 - 2, &mut bytes).unwrap();
        assert_eq!((bytes, storage.resident()), ([1, 2, 3, 4], 2 * CHUNK));
        storage.write_zeroes(CHUNK * 4, CHUNK).unwrap();
        storage.read(CHUNK * 5 - 2, &mut bytes).unwrap();
        assert_eq!((bytes, storage.resident()), ([0, 0, 3, 4], CHUNK));
        storage.write_zeroes(CHUNK * 5, 1).unwrap();
        storage.read(CHUNK * 5 - 2, &mut bytes).unwrap();
        assert_eq!(bytes, [0, 0, 0, 4]);
        storage.discard(CHUNK * 5 + 1, CHUNK * 2);
        assert_eq!(storage.resident(), CHUNK);
        storage.discard(0, 1 << 40);
        assert_eq!(storage.resident(), 0);
    }

    #[test]
    fn a_file_keeps_what_is_written_and_must_be_long_enough() {
        let path = std::env::temp_dir().join(format!("iogate-storage-{}", std::process::id()));
        std::fs::write(&path, [7; 8192]).unwrap();
        assert!(Backed::open(&path, Some(8193)).is_err());
        let storage = Backed::open(&path, None).unwrap();
        storage.write(4096, b"hello").unwrap();
        storage.write_zeroes(4100, 2).unwrap();
        storage.flush().unwrap();
        let mut bytes = [0; 6];
        storage.read(4096, &mut bytes).unwrap();
        assert_eq!((&bytes, storage.size()), (b"hell\0\0", 8192));
        assert_eq!(std::fs::read(&path).unwrap().len(), 8192);
        std::fs::remove_file(&path).unwrap();
    }
}
