//! A socket that clients connect to, and the threads that serve them.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect,
    listen, shutdown, socket_with,
};

use crate::channel::{Channel, Side};
use crate::device::Device;
use crate::error::Ended;
use crate::peer::Peer;
use crate::serve;
use crate::version::Limits;

static NEXT: AtomicU64 = AtomicU64::new(1);

/// What a server offers to its clients, and for how long it waits for them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ServerOptions {
    /// What it takes.
    pub limits: Limits,
    /// How long a request of the device waits for the client's reply, and a
    /// message for room in the socket, before the client counts as dead.
    pub timeout: Duration,
    /// Bytes of answers that are kept for a client that does not read them;
    /// past that the connection is closed.
    pub queue: usize,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            timeout: Duration::from_secs(5),
            queue: 4 << 20,
        }
    }
}

#[derive(Default)]
struct Stopping {
    stopped: AtomicBool,
    listener: Option<OwnedFd>,
    connections: Mutex<Vec<Weak<Channel>>>,
}

/// Ends a [`Server`]: its accepting and the serving of its clients.
#[derive(Clone)]
pub struct Stop(Arc<Stopping>);

impl Stop {
    /// Closes every connection and makes every thread that accepts or serves
    /// return. May be called from anywhere, more than once.
    pub fn stop(&self) {
        self.0.stopped.store(true, Ordering::SeqCst);
        if let Some(listener) = &self.0.listener {
            let _ = shutdown(listener, Shutdown::Both);
        }
        let connections = &self.0.connections;
        let mut connections = connections.lock().unwrap_or_else(PoisonError::into_inner);
        for channel in connections.drain(..).filter_map(|weak| weak.upgrade()) {
            channel.close();
        }
    }

    /// Whether it was asked to stop.
    pub fn is_stopped(&self) -> bool {
        self.0.stopped.load(Ordering::SeqCst)
    }

    fn watch(&self, channel: &Arc<Channel>) {
        let connections = &self.0.connections;
        let mut connections = connections.lock().unwrap_or_else(PoisonError::into_inner);
        connections.retain(|weak| weak.strong_count() > 0);
        connections.push(Arc::downgrade(channel));
        drop(connections);
        if self.is_stopped() {
            channel.close();
        }
    }
}

/// A listening socket.
pub struct Server {
    stop: Stop,
    /// What to remove when it goes.
    path: Option<PathBuf>,
    options: ServerOptions,
}

fn unix_socket() -> Result<OwnedFd, Errno> {
    socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
}

/// A socket connected to `path`.
pub(crate) fn connected(path: &Path) -> Result<OwnedFd, Errno> {
    let socket = unix_socket()?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Whether at `path` is a socket that nobody listens at.
fn is_deserted(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|entry| entry.file_type().is_socket())
        && matches!(connected(path), Err(Errno::CONNREFUSED))
}

impl Server {
    /// Listens at `path`. A socket that nobody listens at any more is
    /// replaced; anything else there is an error. The path is removed when the
    /// server goes.
    pub fn bind(path: impl AsRef<Path>, options: ServerOptions) -> io::Result<Self> {
        let path = path.as_ref();
        let address = SocketAddrUnix::new(path)?;
        let socket = unix_socket()?;
        match bind(&socket, &address) {
            Err(Errno::ADDRINUSE) if is_deserted(path) => {
                std::fs::remove_file(path)?;
                bind(&socket, &address)?;
            }
            bound => bound?,
        }
        listen(&socket, 16)?;
        let mut server = Self::from_listener(socket, options);
        server.path = Some(path.to_owned());
        Ok(server)
    }

    /// Serves whoever connects to `listener`, a listening Unix stream socket.
    pub fn from_listener(listener: OwnedFd, options: ServerOptions) -> Self {
        Self {
            stop: Stop(Arc::new(Stopping {
                listener: Some(listener),
                ..Stopping::default()
            })),
            path: None,
            options,
        }
    }

    /// A handle that ends it.
    pub fn stop(&self) -> Stop {
        self.stop.clone()
    }

    /// Waits for the next client; `None` when the server was stopped.
    pub fn accept(&self) -> Result<Option<Connection>, Errno> {
        let Some(listener) = &self.stop.0.listener else {
            return Ok(None);
        };
        loop {
            if self.stop.is_stopped() {
                return Ok(None);
            }
            match accept_with(listener, SocketFlags::CLOEXEC) {
                Ok(socket) => {
                    let connection = Connection::of(socket, self.options, self.stop.clone());
                    return Ok(Some(connection));
                }
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(_) if self.stop.is_stopped() => return Ok(None),
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Serves one client after the other on this thread until the server is
    /// stopped. Threads that call this at once serve as many clients at once.
    /// `ended` is told how each of them ended.
    pub fn run(&self, device: &dyn Device, mut ended: impl FnMut(Ended)) -> Result<(), Errno> {
        while let Some(connection) = self.accept()? {
            ended(connection.serve(device));
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// A client that connected, to be served by the thread that calls
/// [`serve`](Self::serve).
pub struct Connection {
    peer: Arc<Peer>,
    options: ServerOptions,
    stop: Stop,
}

impl Connection {
    /// A client at the other end of `socket`, a connected Unix stream socket.
    pub fn new(socket: OwnedFd, options: ServerOptions) -> Self {
        Self::of(socket, options, Stop(Arc::default()))
    }

    fn of(socket: OwnedFd, options: ServerOptions, stop: Stop) -> Self {
        let channel = Arc::new(Channel::new(
            socket,
            serve::BEFORE_VERSION,
            options.queue,
            options.timeout,
            Side::Server,
        ));
        stop.watch(&channel);
        Self {
            peer: Arc::new(Peer::new(NEXT.fetch_add(1, Ordering::Relaxed), channel)),
            options,
            stop,
        }
    }

    /// A handle that ends it; of the server, if it has one.
    pub fn stop(&self) -> Stop {
        self.stop.clone()
    }

    /// The client.
    pub fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }

    /// Serves the client until it goes, or until it is stopped.
    pub fn serve(self, device: &dyn Device) -> Ended {
        let ended = serve::serve(&self.peer, device, &self.options.limits);
        match ended {
            Ended::Disconnected if self.stop.is_stopped() => Ended::Stopped,
            ended => ended,
        }
    }
}
