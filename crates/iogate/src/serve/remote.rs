//! A device that another vfio-user server has: its registers and interrupts are
//! passed through, and what the guest lets it reach is told to it.

use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::thread;

use iogate_dma::{
    Change, DmaError, DomainKey, Fault, Gpa, GuestDomains, Iova, Listener, Mapping, Memory,
    MemoryError, Observer, Partial, Port, Rights, Scan, Source, Span, Width,
};
use iogate_memory::{Backed, GuestMemory, RangeWatcher};
use iogate_shadow::{Following, Section, Shadow};
use iogate_vfio_user::{
    Client, ClientOptions, Device, DeviceInfo, DmaMap, Errno, Error, Held, Irq, IrqData, IrqTarget,
    Peer, Region, RemoteListener, RemoteRegion, SetIrqs,
};

use super::ram::ClientRam;
use super::seat::Seat;

/// A device behind a connection.
pub(crate) struct RemoteDevice {
    name: String,
    pub(crate) seat: Arc<Seat>,
    memory: Arc<GuestMemory>,
    ram: Mutex<ClientRam>,
    /// The connection, replaced when it was lost.
    client: RwLock<Arc<Client>>,
    info: DeviceInfo,
    /// What the server said when it was connected to first. Files of regions
    /// are of that server.
    regions: Vec<RemoteRegion>,
    irqs: Vec<Irq>,
    listener: Arc<Told>,
    following: OnceLock<Following>,
}

/// Tells the server that is connected now.
struct Told {
    to: RwLock<Option<Arc<dyn Listener>>>,
}

impl Listener for Told {
    fn apply(&self, changes: &[Change]) -> Result<(), Partial> {
        let to = self
            .to
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        match to {
            Some(to) => to.apply(changes),
            None => Err(Partial {
                applied: 0,
                errno: Errno::NOTCONN.raw_os_error(),
            }),
        }
    }
}

impl Told {
    /// Tells the server behind `client` from now on, which has nothing yet.
    fn set(&self, client: &Arc<Client>, memory: &Arc<GuestMemory>) {
        let memory = Arc::clone(memory);
        let pieces = move |run: Span<Gpa>, tell: &mut dyn FnMut(Span<Gpa>, Held<'_>)| {
            pieces(&memory, run, tell);
        };
        let listener = RemoteListener::new(Arc::clone(client), pieces);
        let mut to = self.to.write().unwrap_or_else(PoisonError::into_inner);
        *to = Some(Arc::new(listener));
    }
}

/// The parts of `run` that files hold.
fn pieces(memory: &GuestMemory, run: Span<Gpa>, tell: &mut dyn FnMut(Span<Gpa>, Held<'_>)) {
    use std::os::fd::AsFd;
    let mut from = Some(run.first());
    while let Some(Backed {
        span, file, offset, ..
    }) = from.and_then(|from| memory.backed_from(from))
    {
        let Some(part) = span.intersection(&run) else {
            return;
        };
        tell(part, Held::File(file.as_fd(), offset));
        from = part.last().checked_add(1);
    }
}

/// What of the guest a device reaches: what its unit says, or everything.
pub(crate) enum Behind {
    Unit(Arc<Shadow>),
    Nothing,
}

impl RemoteDevice {
    /// Connects to the server at `path`, for the device that the guest has at
    /// `source`. `port` is the way of its requests that no mapping answers.
    pub(crate) fn connect(
        name: &str,
        path: &Path,
        (source, behind): (Source, Behind),
        port: Port,
        memory: &Arc<GuestMemory>,
    ) -> Result<Arc<Self>, Error> {
        let options = ClientOptions {
            memory: Some(Arc::new(Requests(Mutex::new(port)))),
            ..ClientOptions::default()
        };
        let client = Arc::new(Client::connect(path, options)?);
        let info = client.info()?;
        let regions = (0..info.regions).map(|index| client.region(index));
        let regions = regions.collect::<Result<_, _>>()?;
        let irqs = (0..info.irqs).map(|index| client.irq(index));
        let irqs = irqs.collect::<Result<_, _>>()?;
        let listener = Arc::new(Told {
            to: RwLock::new(None),
        });
        listener.set(&client, memory);
        serve_requests(&client, name);
        let device = Arc::new(Self {
            name: name.to_owned(),
            seat: Arc::default(),
            memory: Arc::clone(memory),
            ram: Mutex::default(),
            client: RwLock::new(client),
            info,
            regions,
            irqs,
            listener: Arc::clone(&listener),
            following: OnceLock::new(),
        });
        let shadow = match behind {
            Behind::Unit(shadow) => shadow,
            Behind::Nothing => Shadow::of(Arc::new(Everything)),
        };
        // A listener of its own overlaps with no other.
        if let Ok(following) = shadow.follow(source, Section::ALL, listener) {
            let _ = device.following.set(following);
        }
        let watcher: Arc<dyn RangeWatcher> = Arc::clone(&device) as _;
        memory.watch(Arc::downgrade(&watcher));
        Ok(device)
    }

    fn client(&self) -> Arc<Client> {
        let client = self.client.read();
        Arc::clone(&client.unwrap_or_else(PoisonError::into_inner))
    }

    /// A connection that is there: a new one if the last was lost.
    fn reconnect(&self) -> Result<(), Errno> {
        let mut held = self.client.write().unwrap_or_else(PoisonError::into_inner);
        if held.is_connected() {
            return Ok(());
        }
        let client = held.reconnect().map_err(|error| error.errno())?;
        let sizes = (0..self.info.regions).map(|index| client.region(index));
        for (now, then) in sizes.zip(&self.regions) {
            let now = now.map_err(|error| error.errno())?;
            if now.size != then.size {
                eprintln!("iogate: {}: its server has another device now", self.name);
                return Err(Errno::NODEV);
            }
        }
        *held = Arc::new(client);
        let client = Arc::clone(&held);
        drop(held);
        serve_requests(&client, &self.name);
        self.listener.set(&client, &self.memory);
        if let Some(following) = self.following.get() {
            following.replay();
        }
        Ok(())
    }

    fn ram(&self) -> std::sync::MutexGuard<'_, ClientRam> {
        self.ram.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask<T>(&self, ask: impl FnOnce(&Client) -> Result<T, Error>) -> Result<T, Errno> {
        ask(&self.client()).map_err(|error| error.errno())
    }
}

/// Answers what the server asks for while nobody waits for it.
fn serve_requests(client: &Arc<Client>, name: &str) {
    let client = Arc::clone(client);
    let name = name.to_owned();
    let thread = thread::Builder::new().name(format!("for {name}"));
    // Without the thread the server's requests wait until somebody asks it.
    let _ = thread.spawn(move || {
        let ended = client.run();
        eprintln!("iogate: {name}: the connection to its server has ended: {ended:?}");
    });
}

impl RangeWatcher for RemoteDevice {
    fn changed(&self, span: Span<Gpa>) {
        if let Some(following) = self.following.get() {
            following.resync(span);
        }
    }
}

impl Device for RemoteDevice {
    fn connected(&self, client: &Arc<Peer>) -> Result<(), Errno> {
        self.seat.take(client)?;
        let connected = self.reconnect();
        if connected.is_err() {
            self.seat.leave();
        }
        connected
    }

    fn disconnected(&self, client: &Peer) {
        if !self.seat.is(client) {
            return;
        }
        // The next client finds the device as at power-on. If its server is
        // gone, so is its state.
        let irqs = (0..).zip(&self.irqs);
        for (index, _) in irqs.filter(|(_, irq)| irq.count > 0) {
            let trigger = iogate_vfio_user::IrqAction::Trigger;
            let _ = self.ask(|client| client.set_irqs(index, 0, 0, trigger, IrqTarget::None));
        }
        let _ = self.ask(Client::reset);
        let ranges = self.ram().take_all();
        drop(ranges);
        self.seat.leave();
    }

    fn info(&self) -> DeviceInfo {
        self.info
    }

    fn region(&self, index: u32) -> Result<Region<'_>, Errno> {
        use std::os::fd::AsFd;
        let index = usize::try_from(index).map_err(|_| Errno::INVAL)?;
        let region = self.regions.get(index).ok_or(Errno::INVAL)?;
        let file = region.file.as_ref();
        Ok(Region {
            size: region.size,
            rights: region.rights,
            file: file.map(|(file, offset)| (file.as_fd(), *offset)),
            areas: region.areas.clone(),
            kind: region.kind,
        })
    }

    fn region_read(&self, region: u32, offset: u64, into: &mut [u8]) -> Result<(), Errno> {
        self.ask(|client| client.region_read(region, offset, into))
    }

    fn region_write(&self, region: u32, offset: u64, from: &[u8]) -> Result<(), Errno> {
        self.ask(|client| client.region_write(region, offset, from))
    }

    fn irq(&self, index: u32) -> Result<Irq, Errno> {
        let index = usize::try_from(index).map_err(|_| Errno::INVAL)?;
        self.irqs.get(index).copied().ok_or(Errno::INVAL)
    }

    fn set_irqs(&self, _: &Peer, set: SetIrqs<'_>) -> Result<(), Errno> {
        use std::os::fd::AsFd;
        let pass = |target| {
            self.ask(|client| client.set_irqs(set.index, set.start, set.count, set.action, target))
        };
        match &set.data {
            IrqData::None => pass(IrqTarget::None),
            IrqData::Bool(bools) => pass(IrqTarget::Bool(bools)),
            IrqData::Eventfds(files) if files.is_empty() => pass(IrqTarget::NoEventfds),
            IrqData::Eventfds(files) => {
                let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
                pass(IrqTarget::Eventfds(&files))
            }
        }
    }

    fn dma_map(&self, client: &Arc<Peer>, map: DmaMap) -> Result<(), Errno> {
        let range = ClientRam::range(&self.memory, client, map)?;
        self.ram().put(range);
        Ok(())
    }

    fn dma_unmap(&self, _: &Peer, span: Span<Iova>) {
        let range = self.ram().take(span);
        drop(range);
    }

    fn reset(&self, _: &Peer) -> Result<(), Errno> {
        self.ask(Client::reset)
    }
}

/// What the device asks for by messages: its own addresses, which the unit
/// translates.
struct Requests(Mutex<Port>);

impl Requests {
    fn with<T>(
        &self,
        address: u64,
        access: impl FnOnce(&mut Port) -> Result<T, DmaError>,
    ) -> Result<T, MemoryError> {
        let mut port = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        access(&mut port).map_err(|_| MemoryError::Absent { address })
    }
}

impl Memory for Requests {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), MemoryError> {
        self.with(address, |port| port.read(Iova(address), into))
    }

    fn write(&self, address: u64, from: &[u8]) -> Result<(), MemoryError> {
        self.with(address, |port| port.write(Iova(address), from))
    }

    fn load(&self, address: u64, width: Width) -> Result<u64, MemoryError> {
        let mut bytes = [0; 8];
        let length = usize::try_from(width.bytes()).unwrap_or_default();
        self.read(address, bytes.get_mut(..length).unwrap_or_default())?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn store(&self, address: u64, width: Width, value: u64) -> Result<(), MemoryError> {
        let length = usize::try_from(width.bytes()).unwrap_or_default();
        let bytes = value.to_le_bytes();
        self.write(address, bytes.get(..length).unwrap_or_default())
    }

    fn compare_exchange(&self, address: u64, _: Width, _: u64, _: u64) -> Result<u64, MemoryError> {
        Err(MemoryError::NotAtomic { address })
    }
}

/// The domain of a device that no unit translates for.
struct Everything;

impl GuestDomains for Everything {
    fn domain(&self, _: Source) -> Option<(DomainKey, u32)> {
        Some((DomainKey([0; 4]), 0))
    }

    fn scan(
        &self,
        _: Source,
        span: Span<Iova>,
        _: usize,
        tell: &mut dyn FnMut(Mapping) -> std::ops::ControlFlow<()>,
    ) -> Scan {
        let all = Mapping {
            span,
            output: span.first().0,
            rights: Rights::READ_WRITE,
        };
        match tell(all) {
            std::ops::ControlFlow::Continue(()) => Scan::Whole,
            std::ops::ControlFlow::Break(()) => Scan::Stopped,
        }
    }

    fn observe(&self, _: std::sync::Weak<dyn Observer>) {}

    /// There is no guest to be told.
    fn report(&self, _: &Fault) {}
}
