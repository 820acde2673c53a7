//! One thread for each device, which does the device's work. A device that
//! waits for its client's memory keeps no other one waiting.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Thread;

use iogate_dma::{FaultSink, Gate, Port};
use iogate_host::Device;
use iogate_pci::After;

use crate::alarm::Alarm;

#[derive(Default)]
struct Flags {
    kicked: AtomicBool,
    stop: AtomicBool,
}

#[derive(Clone)]
struct Worker {
    flags: Arc<Flags>,
    thread: Thread,
}

impl Worker {
    fn kick(&self) {
        self.flags.kicked.store(true, Ordering::SeqCst);
        self.thread.unpark();
    }
}

/// The workers of all devices, by the devices' indices.
pub(crate) struct Workers(Vec<Worker>);

impl Workers {
    pub(crate) fn start(
        devices: &[Arc<Device>],
        gate: &Arc<Gate>,
        faults: &Arc<dyn FaultSink>,
        alarm: &Alarm,
    ) -> io::Result<Self> {
        let start = |device: &Arc<Device>| {
            let flags = Arc::new(Flags::default());
            let device = Arc::clone(device);
            let port = Port::new(
                device.source,
                Arc::clone(&device.attachment),
                gate.join(),
                Arc::clone(faults),
            );
            let (alarm, theirs) = (alarm.clone(), Arc::clone(&flags));
            let function = Arc::clone(&device.function);
            let thread = std::thread::Builder::new()
                .name(format!("work {}", device.source))
                .spawn(move || alarm.guard(|| work(&device, port, &theirs)))?;
            let worker = Worker {
                flags,
                thread: thread.thread().clone(),
            };
            let woken = worker.clone();
            function.attend(Arc::new(move || woken.kick()));
            Ok(worker)
        };
        Ok(Self(devices.iter().map(start).collect::<io::Result<_>>()?))
    }

    /// Says that a device has something to do.
    pub(crate) fn kick(&self, device: Option<usize>) {
        if let Some(worker) = device.and_then(|index| self.0.get(index)) {
            worker.kick();
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for worker in &self.0 {
            worker.flags.stop.store(true, Ordering::SeqCst);
            worker.thread.unpark();
        }
    }
}

fn work(device: &Device, mut port: Port, flags: &Flags) {
    loop {
        while !flags.kicked.swap(false, Ordering::SeqCst) {
            if flags.stop.load(Ordering::SeqCst) {
                return;
            }
            std::thread::park();
        }
        while device.function.work(&mut port) == After::Work {
            if flags.stop.load(Ordering::SeqCst) {
                return;
            }
        }
    }
}
