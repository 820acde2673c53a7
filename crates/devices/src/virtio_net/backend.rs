//! Where packets go and come from.
//!
//! A stream speaks what QEMU calls `-netdev stream`: each frame after its
//! length, 32 bits in network order. A thread reads frames ahead into buffers
//! that are used again; a write waits at most [`PATIENCE`] for the peer and
//! then drops the frame, as a wire does. A tap gives and takes a frame at a
//! time, without a length.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use iogate_pci::Wake;

/// Bytes of a frame at most.
pub(super) const MAX_FRAME: usize = 64 << 10;
/// Frames that are read ahead.
const AHEAD: usize = 256;
/// How long a peer may take no bytes.
const PATIENCE: Duration = Duration::from_millis(10);

pub(super) enum Backend {
    /// What is transmitted on a pair is received on it.
    Loopback,
    Stream(Stream),
}

impl Backend {
    /// Whether the link is up, where that may change.
    pub(super) fn link(&self) -> Option<bool> {
        match self {
            Self::Loopback => None,
            Self::Stream(stream) => Some(!stream.inbox.lock().closed),
        }
    }

    /// Whether there is something that no notification tells of.
    pub(super) fn has_news(&self) -> bool {
        match self {
            Self::Loopback => false,
            Self::Stream(stream) => {
                let frames = stream.inbox.lock();
                frames.closed || !frames.waiting.is_empty()
            }
        }
    }

    /// Gives what comes in the way to the worker.
    pub(super) fn attend(&self, wake: Wake) {
        if let Self::Stream(stream) = self {
            stream.inbox.lock().wake = Some(wake);
        }
    }
}

/// A connection to a peer that takes and gives frames.
pub(super) struct Stream {
    inbox: Arc<Inbox>,
    outbox: Mutex<Outbox>,
}

enum Outbox {
    Stream(Socket),
    Tap(File),
}

struct Socket {
    socket: UnixStream,
    /// A frame of which a part is sent: what is left of it.
    rest: VecDeque<u8>,
}

/// Frames on their way in.
#[derive(Default)]
struct Inbox {
    frames: Mutex<Frames>,
    /// There is room again.
    room: Condvar,
}

#[derive(Default)]
struct Frames {
    waiting: VecDeque<Vec<u8>>,
    /// Buffers to use again.
    spare: Vec<Vec<u8>>,
    closed: bool,
    wake: Option<Wake>,
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Frames> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts down a frame as soon as there is room.
    fn push(&self, frame: Vec<u8>) {
        let mut frames = self.lock();
        while frames.waiting.len() >= AHEAD && !frames.closed {
            let waited = self.room.wait(frames);
            frames = waited.unwrap_or_else(PoisonError::into_inner);
        }
        frames.waiting.push_back(frame);
    }

    fn wake(&self) {
        let wake = self.lock().wake.clone();
        if let Some(wake) = wake {
            wake();
        }
    }
}

impl Stream {
    /// Connects to the peer that listens at `path`.
    pub(super) fn connect(path: &Path) -> io::Result<Self> {
        let socket = UnixStream::connect(path)?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let mut from = socket.try_clone()?;
        let outbox = Outbox::Stream(Socket {
            socket,
            rest: VecDeque::new(),
        });
        Self::start(outbox, move |inbox| read_frames(&mut from, inbox))
    }

    /// A tap, which gives a frame a read and takes one a write. Its reader
    /// ends with the process, or when the interface goes.
    pub(super) fn tap(tap: File) -> io::Result<Self> {
        let mut from = tap.try_clone()?;
        Self::start(Outbox::Tap(tap), move |inbox| read_tap(&mut from, inbox))
    }

    fn start(
        outbox: Outbox,
        read: impl FnOnce(&Inbox) -> io::Result<()> + Send + 'static,
    ) -> io::Result<Self> {
        let inbox = Arc::new(Inbox::default());
        let reader = Arc::clone(&inbox);
        std::thread::Builder::new()
            .name("virtio-net".to_owned())
            .spawn(move || {
                // Whatever ends it, the link is down.
                let _ = read(&reader);
                reader.lock().closed = true;
                reader.wake();
            })?;
        Ok(Self {
            inbox,
            outbox: Mutex::new(outbox),
        })
    }

    /// Sends a frame, or drops it if the peer does not take it.
    pub(super) fn send(&self, frame: &[u8]) {
        let mut outbox = self.outbox.lock().unwrap_or_else(PoisonError::into_inner);
        let outbox = match &mut *outbox {
            Outbox::Stream(socket) => socket,
            Outbox::Tap(tap) => {
                // An interface that is down drops it.
                let _ = tap.write(frame);
                return;
            }
        };
        // Without all of the frame before, the peer would not find this one.
        if !outbox.push_rest() {
            return;
        }
        let length = u32::try_from(frame.len()).unwrap_or(0).to_be_bytes();
        outbox.send_parts(&length, frame);
    }

    /// Takes a frame that has come in.
    pub(super) fn next(&self) -> Option<Vec<u8>> {
        self.inbox.lock().waiting.pop_front()
    }

    pub(super) fn has_frames(&self) -> bool {
        !self.inbox.lock().waiting.is_empty()
    }

    /// Puts back the frame that was taken last.
    pub(super) fn put_back(&self, frame: Vec<u8>) {
        self.inbox.lock().waiting.push_front(frame);
    }

    /// Gives back the buffer of a frame that is done.
    pub(super) fn recycle(&self, frame: Vec<u8>) {
        self.inbox.lock().spare.push(frame);
        self.inbox.room.notify_one();
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.inbox.lock().closed = true;
        self.inbox.room.notify_one();
        let outbox = self
            .outbox
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        if let Outbox::Stream(outbox) = outbox {
            // The reader ends; a socket that is already gone is as good.
            let _ = outbox.socket.shutdown(Shutdown::Both);
        }
    }
}

impl Socket {
    /// Sends what is left of a frame; says whether nothing is left.
    fn push_rest(&mut self) -> bool {
        while !self.rest.is_empty() {
            let (now, _) = self.rest.as_slices();
            match self.socket.write(now) {
                Ok(0) => return false,
                Ok(sent) => drop(self.rest.drain(..sent.min(self.rest.len()))),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }

    fn send_parts(&mut self, length: &[u8], frame: &[u8]) {
        let parts = [io::IoSlice::new(length), io::IoSlice::new(frame)];
        let sent = loop {
            match self.socket.write_vectored(&parts) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Nothing of it went out: it is dropped as a whole.
                Err(_) | Ok(0) => return,
                Ok(sent) => break sent,
            }
        };
        self.rest.extend(length.iter().chain(frame).skip(sent));
        // What does not go now goes before the next frame.
        self.push_rest();
    }
}

/// Reads frames until the interface goes.
fn read_tap(from: &mut impl Read, inbox: &Inbox) -> io::Result<()> {
    loop {
        let mut frame = inbox.lock().spare.pop().unwrap_or_default();
        frame.resize(MAX_FRAME, 0);
        let length = loop {
            match from.read(&mut frame) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        if length == 0 {
            return Ok(());
        }
        frame.truncate(length);
        inbox.push(frame);
        inbox.wake();
        if inbox.lock().closed {
            return Ok(());
        }
    }
}

/// Reads frames until the peer ends or makes no sense.
fn read_frames(from: &mut impl Read, inbox: &Inbox) -> io::Result<()> {
    loop {
        let mut length = [0; 4];
        from.read_exact(&mut length)?;
        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
        if length == 0 || length > MAX_FRAME {
            return Err(ErrorKind::InvalidData.into());
        }
        let mut frame = inbox.lock().spare.pop().unwrap_or_default();
        frame.resize(length, 0);
        from.read_exact(&mut frame)?;
        inbox.push(frame);
        inbox.wake();
        if inbox.lock().closed {
            return Ok(());
        }
    }
}
