//! Stands on a VT-d unit's socket between QEMU and the server, and takes one kind of invalidation out of the guest's
//! queue before the server sees it: what a server does that forgets this kind.

use std::fs::File;
use std::io::Error;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::verdict::{About as _, Stop};

/// What is forgotten. VT-d 4.1 section 6.5.2: types of descriptors, and granularities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Context,
    IotlbDomain,
    IotlbPages,
    DeviceTlb,
    PasidIotlb,
    PasidCache,
}

impl Kind {
    /// Whether the first half of a descriptor says so.
    fn is(self, low: u64) -> bool {
        let (kind, granularity) = (low & 0xf, low >> 4 & 3);
        match self {
            Self::Context => kind == 1,
            Self::IotlbDomain => (kind, granularity) == (2, 2),
            Self::IotlbPages => (kind, granularity) == (2, 3),
            Self::DeviceTlb => kind == 3 || kind == 8,
            Self::PasidIotlb => kind == 6,
            Self::PasidCache => kind == 7,
        }
    }
}

/// A wait that writes nothing, interrupts nobody and fences nothing.
const NOTHING: u64 = 5;

/// Commands of vfio-user, and bytes of a message's header.
const DMA_MAP: u16 = 2;
const DMA_UNMAP: u16 = 3;
const REGION_WRITE: u16 = 10;
const REGION_WRITE_MULTI: u16 = 15;
const HEADER: usize = 16;
/// More than any message has.
const LONGEST: usize = 1 << 22;
const MOST_DESCRIPTORS: usize = 64;

/// The unit's registers: tail and address of the queue.
const IQT: u64 = 0x88;
const IQA: u64 = 0x90;

/// The forgetful one, until it is dropped.
pub(crate) struct Forgetful {
    listens: PathBuf,
    forgotten: Arc<AtomicU64>,
}

impl Forgetful {
    /// Listens at one path, and connects to the server at the other for each that comes.
    pub(crate) fn start(listens: &Path, server: &Path, kind: Kind) -> Result<Self, Stop> {
        // That of the case before.
        let _ = std::fs::remove_file(listens);
        let listener = UnixListener::bind(listens).about(listens.display())?;
        let forgotten = Arc::new(AtomicU64::new(0));
        let (server, count) = (server.to_owned(), Arc::clone(&forgotten));
        std::thread::spawn(move || {
            for client in listener.incoming() {
                // Whoever waits for an answer sees the connection closed.
                let (Ok(client), Ok(server)) = (client, UnixStream::connect(&server)) else {
                    return;
                };
                let _ = between(&client, &server, kind, &count);
            }
        });
        Ok(Self {
            listens: listens.to_owned(),
            forgotten,
        })
    }

    /// How many descriptors were taken out.
    pub(crate) fn forgotten(&self) -> u64 {
        self.forgotten.load(Ordering::Relaxed)
    }
}

impl Drop for Forgetful {
    fn drop(&mut self) {
        // Its thread ends with the next that it cannot serve; a path that is gone brings none.
        let _ = std::fs::remove_file(&self.listens);
    }
}

/// Passes messages on in both directions until either side is gone.
fn between(
    client: &UnixStream,
    server: &UnixStream,
    kind: Kind,
    forgotten: &AtomicU64,
) -> std::io::Result<()> {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut bytes = vec![0; 1 << 16];
            while let Ok((size @ 1.., descriptors)) = receive(server, &mut bytes) {
                if send(client, &bytes[..size], &descriptors).is_err() {
                    break;
                }
            }
            // Ends the other direction too; the client may be gone already.
            let _ = client.shutdown(std::net::Shutdown::Both);
        });
        let mut queue = Queue::default();
        let passed = loop {
            match pass_on(client, server, kind, forgotten, &mut queue) {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        // As above.
        let _ = server.shutdown(std::net::Shutdown::Both);
        passed
    })
}

/// One message from the client to the server; false at the end.
fn pass_on(
    client: &UnixStream,
    server: &UnixStream,
    kind: Kind,
    forgotten: &AtomicU64,
    queue: &mut Queue,
) -> std::io::Result<bool> {
    let mut message = vec![0; HEADER];
    let mut descriptors = Vec::new();
    if !fill(client, &mut message, &mut descriptors)? {
        return Ok(false);
    }
    let size = number(&message, 4, 4);
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    if !(HEADER..LONGEST).contains(&size) {
        return Err(Error::other("a message of a strange size"));
    }
    let mut body = vec![0; size - HEADER];
    if !fill(client, &mut body, &mut descriptors)? {
        return Ok(false);
    }
    match u16::try_from(number(&message, 2, 2)).unwrap_or_default() {
        DMA_MAP => {
            if let Some(file) = descriptors.first() {
                queue.map(
                    number(&body, 16, 8),
                    number(&body, 24, 8),
                    number(&body, 8, 8),
                    file,
                )?;
            }
        }
        DMA_UNMAP => {
            let (first, length) = (number(&body, 8, 8), number(&body, 16, 8));
            let all = number(&body, 4, 4) & 2 != 0;
            queue.memory.retain(|memory| {
                !all && !(first..first.saturating_add(length)).contains(&memory.address)
            });
        }
        REGION_WRITE => {
            let taken = queue.written(&body, kind)?;
            forgotten.fetch_add(taken, Ordering::Relaxed);
        }
        REGION_WRITE_MULTI => {
            for write in body.get(8..).unwrap_or_default().chunks(24) {
                let taken = queue.written(write, kind)?;
                forgotten.fetch_add(taken, Ordering::Relaxed);
            }
        }
        _ => {}
    }
    message.extend(body);
    send(server, &message, &descriptors)?;
    Ok(true)
}

/// Little-endian bytes of a message; what lies behind its end is zero.
fn number(bytes: &[u8], at: usize, length: usize) -> u64 {
    let bytes = bytes.iter().skip(at).take(length);
    bytes
        .rev()
        .fold(0, |value, byte| value << 8 | u64::from(*byte))
}

/// The guest's queue, in the guest's memory.
#[derive(Default)]
struct Queue {
    memory: Vec<Mapped>,
    /// The register: address, bit 11 for descriptors of 32 bytes, bits 0-2 the size.
    address: u64,
    /// The tail up to which it was looked at.
    seen: u64,
}

/// A mapped piece of the guest's memory.
struct Mapped {
    address: u64,
    length: u64,
    file: File,
    offset: u64,
}

impl Queue {
    fn map(
        &mut self,
        address: u64,
        length: u64,
        offset: u64,
        file: &OwnedFd,
    ) -> std::io::Result<()> {
        let file = File::from(file.try_clone()?);
        self.memory.push(Mapped {
            address,
            length,
            file,
            offset,
        });
        Ok(())
    }

    /// A write of a register: offset, region, length, value.
    fn written(&mut self, write: &[u8], kind: Kind) -> std::io::Result<u64> {
        let length = usize::try_from(number(write, 12, 4)).unwrap_or(0).min(8);
        let value = number(write, 16, length);
        match (number(write, 8, 4), number(write, 0, 8)) {
            (0, IQA) => {
                (self.address, self.seen) = (value, 0);
                Ok(0)
            }
            (0, IQT) => self.forget(kind, value),
            _ => Ok(0),
        }
    }

    /// Looks at the descriptors up to a new tail, and makes those of a kind do nothing.
    fn forget(&mut self, kind: Kind, tail: u64) -> std::io::Result<u64> {
        use std::os::unix::fs::FileExt as _;
        let step = match self.address >> 11 & 1 {
            0 => 16,
            _ => 32,
        };
        let base = self.address & !0xfff;
        let size = 0x1000 << (self.address & 7);
        let mut taken = 0;
        while self.seen != tail % size {
            let at = base + self.seen;
            let memory = self
                .memory
                .iter()
                .find(|memory| {
                    at.checked_sub(memory.address)
                        .is_some_and(|in_it| in_it < memory.length)
                })
                .ok_or_else(|| Error::other("the queue is in no memory"))?;
            let place = memory.offset + (at - memory.address);
            let mut low = [0; 8];
            memory.file.read_exact_at(&mut low, place)?;
            if kind.is(u64::from_le_bytes(low)) {
                let mut nothing = [0; 32];
                nothing[..8].copy_from_slice(&NOTHING.to_le_bytes());
                let nothing = nothing.get(..step).unwrap_or_default();
                memory.file.write_all_at(nothing, place)?;
                taken += 1;
            }
            self.seen = (self.seen + step as u64) % size;
        }
        Ok(taken)
    }
}

/// Fills a buffer; false if the other side has ended before its first byte.
fn fill(
    from: &UnixStream,
    into: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> std::io::Result<bool> {
    let mut done = 0;
    while done < into.len() {
        let (size, more) = receive(from, &mut into[done..])?;
        descriptors.extend(more);
        if size == 0 {
            return Ok(false);
        }
        done += size;
    }
    Ok(true)
}

/// A control buffer for descriptors, aligned as its header wants.
#[repr(align(8))]
struct Control([u8; 512]);

const DESCRIPTORS_SIZE: u32 = (MOST_DESCRIPTORS * size_of::<libc::c_int>()) as u32;

fn receive(from: &UnixStream, into: &mut [u8]) -> std::io::Result<(usize, Vec<OwnedFd>)> {
    let mut control = Control([0; 512]);
    let mut piece = libc::iovec {
        iov_base: into.as_mut_ptr().cast(),
        iov_len: into.len(),
    };
    let mut descriptors = Vec::new();
    // SAFETY: the message points to a piece and a control buffer that live through the call; the control messages are
    // walked by the macros made for it, and each descriptor in them is new and nobody else's.
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut piece;
        message.msg_iovlen = 1;
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = control.0.len();
        let size = libc::recvmsg(from.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC);
        let size = usize::try_from(size).map_err(|_| Error::last_os_error())?;
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while !header.is_null() {
            if ((*header).cmsg_level, (*header).cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
                let length = (*header).cmsg_len - libc::CMSG_LEN(0) as usize;
                let first = libc::CMSG_DATA(header).cast::<libc::c_int>();
                for index in 0..length / size_of::<libc::c_int>() {
                    descriptors.push(OwnedFd::from_raw_fd(first.add(index).read_unaligned()));
                }
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
        Ok((size, descriptors))
    }
}

/// Sends all bytes, the descriptors with the first.
fn send(to: &UnixStream, mut bytes: &[u8], mut descriptors: &[OwnedFd]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        let mut control = Control([0; 512]);
        let mut piece = libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        };
        let count = descriptors.len().min(MOST_DESCRIPTORS);
        // SAFETY: as for receive; the kernel only reads. The control buffer has room for so many descriptors.
        let sent = unsafe {
            let mut message: libc::msghdr = std::mem::zeroed();
            message.msg_iov = &raw mut piece;
            message.msg_iovlen = 1;
            if count > 0 {
                let length = (count * size_of::<libc::c_int>()) as u32;
                message.msg_control = control.0.as_mut_ptr().cast();
                message.msg_controllen = libc::CMSG_SPACE(length) as usize;
                let header = libc::CMSG_FIRSTHDR(&raw const message);
                (*header).cmsg_level = libc::SOL_SOCKET;
                (*header).cmsg_type = libc::SCM_RIGHTS;
                (*header).cmsg_len = libc::CMSG_LEN(length) as usize;
                let first = libc::CMSG_DATA(header).cast::<libc::c_int>();
                for (index, descriptor) in descriptors.iter().take(count).enumerate() {
                    first.add(index).write_unaligned(descriptor.as_raw_fd());
                }
            }
            libc::sendmsg(to.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL)
        };
        let sent = usize::try_from(sent).map_err(|_| Error::last_os_error())?;
        bytes = bytes.get(sent..).unwrap_or_default();
        descriptors = &[];
    }
    Ok(())
}

const _: () = {
    // SAFETY: computes with an integer only.
    let space = unsafe { libc::CMSG_SPACE(DESCRIPTORS_SIZE) };
    assert!(space as usize <= size_of::<Control>());
};

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt as _;

    #[test]
    fn what_linux_queues_is_told_apart() {
        // As seen in Linux 6.12's queue: context by device, IOTLB by domain and by pages, a wait that writes.
        let seen = [0x30_0003_0031, 0x3_00e2, 0x2_00f2, 0x2_0000_0025];
        let kinds = [Kind::Context, Kind::IotlbDomain, Kind::IotlbPages];
        for (index, kind) in kinds.into_iter().enumerate() {
            let taken: Vec<bool> = seen.iter().map(|&low| kind.is(low)).collect();
            let only: Vec<bool> = (0..seen.len()).map(|at| at == index).collect();
            assert_eq!(taken, only, "{kind:?}");
        }
    }

    #[test]
    fn descriptors_of_a_kind_are_taken_out_of_a_queue_that_wraps() {
        let path = std::env::temp_dir().join(format!("iogate-queue-{}", std::process::id()));
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        std::fs::remove_file(&path).unwrap();
        file.set_len(0x2000).unwrap();
        let shared = OwnedFd::from(file.try_clone().unwrap());
        let mut queue = Queue::default();
        queue.map(0x10_0000, 0x1000, 0x1000, &shared).unwrap();
        let write = |offset: u64, value: u64| {
            let mut bytes = [0; 24];
            bytes[..8].copy_from_slice(&offset.to_le_bytes());
            bytes[12] = 8;
            bytes[16..].copy_from_slice(&value.to_le_bytes());
            bytes
        };
        queue
            .written(&write(IQA, 0x10_0000), Kind::PasidCache)
            .unwrap();
        let place = |index: u64| 0x1000 + index * 16;
        for index in [0, 254, 255] {
            file.write_all_at(&0x17_u64.to_le_bytes(), place(index))
                .unwrap();
            file.write_all_at(&0xff_u64.to_le_bytes(), place(index) + 8)
                .unwrap();
        }
        assert_eq!(
            queue.written(&write(IQT, 0xfe0), Kind::PasidCache).unwrap(),
            1
        );
        file.write_all_at(&0x17_u64.to_le_bytes(), place(0))
            .unwrap();
        assert_eq!(
            queue.written(&write(IQT, 0x10), Kind::PasidCache).unwrap(),
            3
        );
        let mut left = [0; 16];
        file.read_exact_at(&mut left, place(255)).unwrap();
        assert_eq!(u128::from_le_bytes(left), u128::from(NOTHING));
    }
}
