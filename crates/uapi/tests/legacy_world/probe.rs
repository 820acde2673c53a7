//! A device model that keeps what is written to it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use iogate_dma::{Interrupts, Port, Source};
use iogate_pci::{
    After, Bar, Endpoint, Function, Identity, Migrate, Msi, MsixLayout, ResetKind, StateError,
    StateReader, StateWriter, StillWorking,
};

/// An access as the model saw it: BAR, offset, length, whether it was a write.
pub type Access = (u8, u64, usize, bool);

pub struct Probe {
    endpoint: Endpoint,
    pub bytes: Mutex<Vec<Vec<u8>>>,
    pub accesses: Mutex<Vec<Access>>,
    pub resets: Mutex<Vec<ResetKind>>,
    /// Whether its state, the first bytes of BAR 0, can be moved.
    pub moves: AtomicBool,
    pub at_rest: AtomicBool,
    /// Whether it never comes to rest.
    pub restless: AtomicBool,
}

impl Probe {
    /// PCI Express, MSI with 4 vectors, MSI-X with 8 in BAR 2, INTx; BAR 0 of
    /// registers, BAR 1 of ports, BAR 2 of 64 bits and mappable.
    pub fn express(source: Source, interrupts: Arc<dyn Interrupts>) -> Self {
        let endpoint = Endpoint::builder(Identity {
            vendor: 0x1234,
            device: 0x11e8,
            class: 0x00_ff00,
            ..Identity::default()
        })
        .bar(Bar::memory32(0, 0x1000))
        .bar(Bar::io(1, 0x20))
        .bar(Bar::memory64(2, 0x1_0000).mappable())
        .pin_a()
        .power_management()
        .msi(Msi {
            vectors: 4,
            maskable: true,
        })
        .msix(MsixLayout {
            vectors: 8,
            table_bar: 2,
            table_offset: 0x2000,
            pba_bar: 2,
            pba_offset: 0x3000,
        })
        // A capability whose length nobody knows, then one more.
        .capability(0x04, &[0xaa; 6], &[0xff; 6])
        .express();
        Self::new(endpoint.build(source, interrupts).unwrap())
    }

    /// Conventional PCI with one BAR and INTx.
    pub fn plain(source: Source, interrupts: Arc<dyn Interrupts>) -> Self {
        let endpoint = Endpoint::builder(Identity {
            vendor: 0x1234,
            device: 0x0001,
            ..Identity::default()
        })
        .bar(Bar::memory32(0, 0x100))
        .pin_a();
        Self::new(endpoint.build(source, interrupts).unwrap())
    }

    fn new(endpoint: Endpoint) -> Self {
        let bytes = (0..6).map(|bar| {
            let size = endpoint.bar(bar).map_or(0, |bar| bar.size);
            vec![0; usize::try_from(size).unwrap()]
        });
        Self {
            bytes: Mutex::new(bytes.collect()),
            endpoint,
            accesses: Mutex::default(),
            resets: Mutex::default(),
            moves: AtomicBool::default(),
            at_rest: AtomicBool::default(),
            restless: AtomicBool::default(),
        }
    }

    pub fn take_accesses(&self) -> Vec<Access> {
        std::mem::take(&mut self.accesses.lock().unwrap())
    }
}

impl Function for Probe {
    fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }
    fn model(&self) -> &'static str {
        "probe"
    }
    fn read_bar(&self, bar: u8, offset: u64, into: &mut [u8]) {
        let access = (bar, offset, into.len(), false);
        self.accesses.lock().unwrap().push(access);
        let at = usize::try_from(offset).unwrap();
        let bytes = self.bytes.lock().unwrap();
        into.copy_from_slice(&bytes[usize::from(bar)][at..at + into.len()]);
    }
    fn write_bar(&self, bar: u8, offset: u64, from: &[u8]) -> After {
        let access = (bar, offset, from.len(), true);
        self.accesses.lock().unwrap().push(access);
        let at = usize::try_from(offset).unwrap();
        let mut bytes = self.bytes.lock().unwrap();
        bytes[usize::from(bar)][at..at + from.len()].copy_from_slice(from);
        // The last register is a doorbell.
        match (bar, offset) {
            (0, 0xffc) => After::Work,
            _ => After::Nothing,
        }
    }
    fn work(&self, _: &mut Port) -> After {
        After::Nothing
    }
    fn reset(&self, kind: ResetKind) {
        self.resets.lock().unwrap().push(kind);
        for bar in self.bytes.lock().unwrap().iter_mut() {
            bar.fill(0);
        }
    }
    fn migrate(&self) -> Option<&dyn Migrate> {
        let moves = self.moves.load(Ordering::SeqCst);
        moves.then_some(self as &dyn Migrate)
    }
}

impl Migrate for Probe {
    fn shape(&self, into: &mut StateWriter) {
        into.bytes(b"probe");
    }
    fn quiesce(&self) -> Result<(), StillWorking> {
        if self.restless.load(Ordering::SeqCst) {
            return Err(StillWorking);
        }
        self.at_rest.store(true, Ordering::SeqCst);
        Ok(())
    }
    fn resume(&self) -> After {
        self.at_rest.store(false, Ordering::SeqCst);
        After::Work
    }
    fn save(&self, into: &mut StateWriter) {
        into.bytes(&self.bytes.lock().unwrap()[0][..16]);
    }
    fn load(&self, mut from: StateReader<'_>) -> Result<(), StateError> {
        let bytes = from.bytes(16)?;
        from.finish()?;
        if bytes[0] == 0xff {
            return Err(StateError::Impossible("a first byte of ones"));
        }
        self.bytes.lock().unwrap()[0][..16].copy_from_slice(bytes);
        Ok(())
    }
}
