//! One ioctl with a buffer whose first word says how long it is.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `_IO(';', number)`: every VFIO and iommufd call has this form.
fn opcode(number: u8) -> libc::c_ulong {
    libc::c_ulong::from(b';') << 8 | libc::c_ulong::from(number)
}

fn result(returned: libc::c_int) -> io::Result<u32> {
    u32::try_from(returned).map_err(|_| io::Error::last_os_error())
}

/// A call whose argument is a number, or nothing (0).
pub(crate) fn with_number(fd: BorrowedFd<'_>, number: u8, argument: u32) -> io::Result<u32> {
    // SAFETY: the callers in this crate use it only for calls whose argument
    // is no pointer, so the kernel touches no memory of ours.
    result(unsafe {
        libc::ioctl(
            fd.as_raw_fd(),
            opcode(number),
            libc::c_ulong::from(argument),
        )
    })
}

/// A call whose argument is a descriptor, passed by reference.
pub(crate) fn with_descriptor(
    fd: BorrowedFd<'_>,
    number: u8,
    argument: BorrowedFd<'_>,
) -> io::Result<u32> {
    let raw = argument.as_raw_fd();
    // SAFETY: the kernel reads one int.
    result(unsafe { libc::ioctl(fd.as_raw_fd(), opcode(number), &raw) })
}

/// A call whose argument is a NUL-terminated text.
pub(crate) fn with_text(fd: BorrowedFd<'_>, number: u8, text: &std::ffi::CStr) -> io::Result<u32> {
    // SAFETY: the kernel reads up to the terminator.
    result(unsafe { libc::ioctl(fd.as_raw_fd(), opcode(number), text.as_ptr()) })
}

/// A structure under construction or being read: native-endian words after
/// the leading size.
#[derive(Clone)]
pub(crate) struct Argument(Vec<u8>);

impl Argument {
    /// `length` bytes: the size, then zeroes.
    pub(crate) fn new(length: usize) -> Self {
        let mut bytes = vec![0; length.max(4)];
        let size = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        bytes[..4].copy_from_slice(&size.to_ne_bytes());
        Self(bytes)
    }

    pub(crate) fn u32(mut self, offset: usize, value: u32) -> Self {
        self.0[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
        self
    }

    pub(crate) fn u64(mut self, offset: usize, value: u64) -> Self {
        self.0[offset..offset + 8].copy_from_slice(&value.to_ne_bytes());
        self
    }

    /// The word at `offset`; 0 past the end.
    pub(crate) fn get_u32(&self, offset: usize) -> u32 {
        self.get(offset).map_or(0, u32::from_ne_bytes)
    }

    /// The double word at `offset`; 0 past the end.
    pub(crate) fn get_u64(&self, offset: usize) -> u64 {
        self.get(offset).map_or(0, u64::from_ne_bytes)
    }

    fn get<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.0.get(offset..)?.first_chunk().copied()
    }

    /// Makes the call.
    ///
    /// The kernel writes no further than the size in the first word, which is
    /// the length of the buffer. What the structure points at is the caller's
    /// business: only [`Buffer`](crate::Buffer)s and arrays that outlive the
    /// call are ever named.
    pub(crate) fn call(&mut self, fd: BorrowedFd<'_>, number: u8) -> io::Result<u32> {
        // SAFETY: see above; the buffer is alive and exclusively borrowed.
        result(unsafe { libc::ioctl(fd.as_raw_fd(), opcode(number), self.0.as_mut_ptr()) })
    }

    /// Makes a call that answers with a capability chain: if the kernel asks
    /// for more room, once more with it.
    pub(crate) fn call_growing(mut self, fd: BorrowedFd<'_>, number: u8) -> io::Result<Self> {
        const SANE: usize = 1 << 20;
        let mut first = self.clone();
        first.call(fd, number)?;
        let wanted = usize::try_from(first.get_u32(0)).unwrap_or(0);
        if wanted <= self.0.len() || wanted > SANE {
            return Ok(first);
        }
        self.0.resize(wanted, 0);
        self = self.u32(0, u32::try_from(wanted).unwrap_or(u32::MAX));
        self.call(fd, number)?;
        Ok(self)
    }

    /// The capabilities of the chain that starts at `offset`, as (id, offset
    /// of the header). Ends at the end of the buffer and never loops.
    pub(crate) fn capabilities(&self, offset: u32) -> Vec<(u16, usize)> {
        let mut found = Vec::new();
        let mut at = usize::try_from(offset).unwrap_or(0);
        let mut last = 0;
        while at > last && at + 8 <= self.0.len() {
            let id = self.get(at).map_or(0, u16::from_ne_bytes);
            found.push((id, at));
            last = at;
            at = usize::try_from(self.get_u32(at + 4)).unwrap_or(0);
        }
        found
    }
}
