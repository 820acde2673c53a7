//! The machine in operation: units, devices and their workers, each on its
//! socket.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use iogate_devices::{MakeMemory, Properties, Slot};
use iogate_dma::{Atc, DeviceTlb, FaultSink, Gate, Iova, Port, RequesterId, Source, Translate};
use iogate_interrupt::{Delivery, Window};
use iogate_machine::{DeviceEntry, Machine};
use iogate_memory::{ClientMemory, GuestMemory};
use iogate_pci::After;
use iogate_shadow::Shadow;
use iogate_vfio_user::{Device, Server, ServerOptions, Stop};
use iogate_vtd::Vtd;

use super::faults::Faults;
use super::interrupts::Wires;
use super::plan::{Plan, PlannedDevice, PlannedUnit};
use super::ram::Untranslated;
use super::remote::{Behind, RemoteDevice};
use super::seat::Seat;
use super::served::Served;
use super::unit::{Outgoing, UnitFunction};
use super::worker::{self, Waker};
use crate::session::{self, REMOTE, Refusal};

/// Connections to one socket at a time. All but the first are told that the
/// device is in use.
const CONNECTIONS: usize = 4;

/// A function on its socket.
pub(crate) struct Socket {
    pub(crate) name: String,
    pub(crate) at: RequesterId,
    pub(crate) path: PathBuf,
    seat: Arc<Seat>,
    stop: Stop,
}

/// A served machine.
pub(crate) struct Running {
    pub(crate) plan: Plan,
    /// The units' functions, then the devices.
    pub(crate) sockets: Vec<Socket>,
    units: Vec<Arc<Served>>,
    wakers: Vec<Arc<Waker>>,
}

/// What is built before anything is served.
struct Parts {
    memory: Arc<GuestMemory>,
    bars: Arc<ClientMemory>,
    delivery: Arc<Delivery>,
    faults: Arc<dyn FaultSink>,
}

fn failed(what: &str) -> impl Fn(io::Error) -> Refusal {
    move |error| Refusal(format!("cannot {what}: {error}"))
}

impl Running {
    /// Builds `machine` and serves it in `directory`.
    pub(crate) fn start(machine: &Machine, plan: Plan, directory: &Path) -> Result<Self, Refusal> {
        let memory = GuestMemory::new().map_err(failed("reserve address space"))?;
        let models = plan.devices.iter();
        let models: BTreeMap<Source, String> = models
            .map(|device| (device.at.into(), device.model.clone()))
            .collect();
        let parts = Parts {
            memory: Arc::new(memory),
            bars: session::client_memory()?,
            delivery: Arc::new(Delivery::new(Window::X86)),
            faults: Arc::new(Faults::new(models)),
        };
        let mut units = Vec::new();
        let mut running = Self {
            plan,
            sockets: Vec::new(),
            units: Vec::new(),
            wakers: Vec::new(),
        };
        let plan = &running.plan;
        for (index, planned) in plan.units.iter().enumerate() {
            let behind = plan.devices.iter();
            let behind = behind.filter(|device| device.unit == Some(index));
            let behind = behind.map(|device| device.at).collect();
            let (unit, served) = build_unit(&parts, planned, behind)?;
            units.push(Unit {
                shadow: Shadow::of(Arc::clone(&unit) as _),
                unit,
            });
            let path = directory.join(&planned.name);
            let (seat, waker) = (Arc::clone(&served.seat), Arc::clone(&served.waker));
            let socket = serve((&planned.name, planned.at), path, served.clone(), seat)?;
            running.sockets.push(socket);
            running.units.push(served);
            running.wakers.push(waker);
        }
        for planned in &plan.devices {
            let entry = machine.functions().get(planned.index);
            let Some(device) = entry.and_then(|entry| entry.device()) else {
                continue;
            };
            let unit = planned.unit.and_then(|unit| units.get(unit));
            let path = directory.join(&planned.name);
            let who = (planned.name.as_str(), planned.at);
            let socket = if device.model == REMOTE {
                let remote = build_remote(&parts, planned, device, unit)?;
                let seat = Arc::clone(&remote.seat);
                serve(who, path, remote, seat)?
            } else {
                let served = build_device(&parts, planned, device, unit)?;
                running.wakers.push(Arc::clone(&served.waker));
                let seat = Arc::clone(&served.seat);
                serve(who, path, served, seat)?
            };
            running.sockets.push(socket);
        }
        Ok(running)
    }

    /// The units' functions.
    pub(crate) fn units(&self) -> impl Iterator<Item = &Arc<Served>> {
        self.units.iter()
    }

    /// Waits until no client is connected; whether none is.
    pub(crate) fn wait_alone(&self, end: Instant) -> bool {
        let mut sockets = self.sockets.iter();
        sockets.all(|socket| socket.seat.wait_free(end))
    }

    /// Ends the serving.
    pub(crate) fn stop(&self) {
        for socket in &self.sockets {
            socket.stop.stop();
            // The server removes it too, when its thread gets there.
            let _ = std::fs::remove_file(&socket.path);
        }
        for waker in &self.wakers {
            waker.stop();
        }
    }
}

/// Listens at `path` and starts the thread that serves who connects.
fn serve(
    (name, at): (&str, RequesterId),
    path: PathBuf,
    device: Arc<dyn Device>,
    seat: Arc<Seat>,
) -> Result<Socket, Refusal> {
    let server = Server::bind(&path, ServerOptions::default());
    let refused = |error| Refusal(format!("cannot listen at {}: {error}", path.display()));
    let server = server.map_err(refused)?;
    let stop = server.stop();
    let thread = std::thread::Builder::new().name(format!("at {name}"));
    let of_clients = name.to_owned();
    let thread = thread.spawn(move || accept(&server, &device, &of_clients));
    thread.map_err(failed("start a thread"))?;
    Ok(Socket {
        name: name.to_owned(),
        at,
        path,
        seat,
        stop,
    })
}

/// Serves the clients of one socket, each on a thread of its own.
fn accept(server: &Server, device: &Arc<dyn Device>, name: &str) {
    let count = Arc::new(AtomicUsize::new(0));
    while let Ok(Some(connection)) = server.accept() {
        if count.fetch_add(1, Ordering::SeqCst) >= CONNECTIONS {
            count.fetch_sub(1, Ordering::SeqCst);
            continue;
        }
        let (device, of_thread) = (Arc::clone(device), Arc::clone(&count));
        let thread = std::thread::Builder::new().name(name.to_owned());
        let started = thread.spawn(move || {
            connection.serve(&*device);
            of_thread.fetch_sub(1, Ordering::SeqCst);
        });
        if started.is_err() {
            count.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// A unit, and the domains of its guest for those who follow them.
struct Unit {
    unit: Arc<Vtd>,
    shadow: Arc<Shadow>,
}

/// The port of a device, and the gate that it passes.
fn port(parts: &Parts, source: Source, unit: Option<&Unit>) -> (Port, Arc<Gate>) {
    let space: Arc<dyn Translate> = match unit {
        Some(unit) => Arc::clone(&unit.unit) as _,
        None => Arc::new(Untranslated(Arc::clone(&parts.memory))),
    };
    let gate = unit.map_or_else(Arc::<Gate>::default, |unit| Arc::clone(unit.unit.gate()));
    let attachment = session::attachment(None);
    attachment.set(Some(space));
    let faults = Arc::clone(&parts.faults);
    let port = Port::new(source, Arc::new(attachment), gate.join(), faults);
    (port, gate)
}

fn build_remote(
    parts: &Parts,
    planned: &PlannedDevice,
    device: &DeviceEntry,
    unit: Option<&Unit>,
) -> Result<Arc<RemoteDevice>, Refusal> {
    let place = &device.place;
    let Some(path) = device.properties.text("socket") else {
        let what = "a remote device needs the `socket` of its server";
        return Err(Refusal(format!("{place}: {what}")));
    };
    let source = Source::from(planned.at);
    let behind = match unit {
        Some(unit) => Behind::Unit(Arc::clone(&unit.shadow)),
        None => Behind::Nothing,
    };
    let (port, _) = port(parts, source, unit);
    let (path, source) = (Path::new(path), (source, behind));
    RemoteDevice::connect(&planned.name, path, source, port, &parts.memory).map_err(|error| {
        Refusal(format!(
            "{place}: the server at {}: {error}",
            path.display()
        ))
    })
}

fn build_unit(
    parts: &Parts,
    planned: &PlannedUnit,
    behind: Vec<RequesterId>,
) -> Result<(Arc<Vtd>, Arc<Served>), Refusal> {
    let outgoing = Arc::new(Outgoing::default());
    let waker = Arc::clone(&outgoing.waker);
    let messages = Arc::clone(&outgoing);
    let to_worker = Arc::clone(&waker);
    let unit = Vtd::builder(Arc::clone(&parts.memory) as _)
        .capabilities(planned.capabilities)
        .scope(behind)
        .deliver(move |message| messages.put(message))
        .deferred(move || to_worker.wake())
        .build()
        .map_err(|error| Refusal(format!("IOMMU `{}`: {error}", planned.name)))?;
    let source = Source::from(planned.at);
    let wires = Arc::new(Wires::new(Arc::clone(&parts.delivery)));
    let function = UnitFunction::new(Arc::clone(&unit), source, Arc::clone(&wires) as _);
    let function = function.map_err(|error| Refusal(error.to_string()))?;
    let served = Arc::new(Served {
        source,
        function: Arc::new(function),
        wires,
        gate: Arc::clone(unit.gate()),
        memory: Arc::clone(&parts.memory),
        waker: Arc::clone(&waker),
        atc: None,
        seat: Arc::default(),
        ram: Mutex::default(),
        irqs: Mutex::default(),
    });
    let (of_worker, to_client) = (Arc::clone(&unit), Arc::clone(&served.seat));
    let quantum = move || {
        let more = of_worker.work();
        while let Some(message) = outgoing.take() {
            let client = to_client.client();
            // Without a client there is nobody to be interrupted.
            let _ = client
                .map(|client| client.dma_post(Iova(message.address), &message.data.to_le_bytes()));
        }
        more
    };
    worker::start(&planned.name, &waker, quantum).map_err(failed("start a thread"))?;
    Ok((unit, served))
}

fn build_device(
    parts: &Parts,
    planned: &PlannedDevice,
    device: &DeviceEntry,
    unit: Option<&Unit>,
) -> Result<Arc<Served>, Refusal> {
    let refused = |error: &dyn std::fmt::Display| {
        Refusal(format!("{}: {}: {error}", device.place, device.model))
    };
    let source = Source::from(planned.at);
    let wires = Arc::new(Wires::new(Arc::clone(&parts.delivery)));
    let properties: Properties = device
        .properties
        .iter()
        .map(|(name, value)| (name.to_owned(), session::property(value)))
        .collect();
    let bars = Arc::clone(&parts.bars);
    let memory: MakeMemory = Arc::new(move |_, size| {
        let memory = bars.make_device_memory(0, size)?;
        Ok(Arc::new(memory))
    });
    let slot = Slot {
        source,
        interrupts: Arc::clone(&wires) as _,
        memory: Some(memory),
        tap: Some(Arc::new(iogate_supervisor::open_tap)),
    };
    let function = iogate_devices::build(&device.model, &properties, slot);
    let function = function.map_err(|error| refused(&error))?;
    function.endpoint().integrate(planned.ats);
    let function = session::watched(function);
    let (port, gate) = port(parts, source, unit);
    let atc = unit.filter(|_| planned.ats).map(|unit| {
        let atc = Arc::new(Atc::new());
        let device: Arc<dyn DeviceTlb> = Arc::clone(&atc) as _;
        let unit = &unit.unit;
        unit.set_device_tlb(planned.at, Arc::downgrade(&device));
        atc
    });
    let mut port = match &atc {
        Some(atc) => port.with_atc(Arc::clone(atc)),
        None => port,
    };
    let waker = Arc::new(Waker::default());
    let to_worker = Arc::clone(&waker);
    function.attend(Arc::new(move || to_worker.wake()));
    let of_worker = Arc::clone(&function);
    let name = planned.name.clone();
    let quantum = move || of_worker.work(&mut port) == After::Work;
    worker::start(&name, &waker, quantum).map_err(failed("start a thread"))?;
    Ok(Arc::new(Served {
        source,
        function,
        wires,
        gate,
        memory: Arc::clone(&parts.memory),
        waker,
        atc,
        seat: Arc::default(),
        ram: Mutex::default(),
        irqs: Mutex::default(),
    }))
}
