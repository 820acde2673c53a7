//! A guest's memory with root, context and PASID tables in it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use iogate_dma::{
    Access, Fault, Gate, Iova, Kind, Memory, MemoryError, Outcome, Pasid, Privilege, Request,
    RequesterId, Rights, Source, Span, Translate, Width,
};
use iogate_paging::{Builder, Format, Permissions};

use crate::invalidate::Invalidation;
use crate::live::TRANSLATION;
use crate::spec::fault::Reason;
use crate::{Capabilities, Vtd};

/// Memory from address 0 on.
pub(crate) struct Flat(Vec<AtomicU64>);

impl Flat {
    pub(crate) fn new(bytes: u64) -> Arc<Self> {
        Arc::new(Self((0..bytes / 8).map(|_| AtomicU64::new(0)).collect()))
    }

    fn at(&self, address: u64) -> Result<&AtomicU64, MemoryError> {
        let absent = MemoryError::Absent { address };
        self.0.get((address / 8) as usize).ok_or(absent)
    }

    pub(crate) fn set(&self, address: u64, words: &[u64]) {
        for (at, &word) in (address..).step_by(8).zip(words) {
            self.at(at).unwrap().store(word, Ordering::Release);
        }
    }

    pub(crate) fn get(&self, address: u64) -> u64 {
        self.at(address).unwrap().load(Ordering::Acquire)
    }
}

impl Memory for Flat {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), MemoryError> {
        for (at, byte) in (address..).zip(into) {
            let word = self.at(at)?.load(Ordering::Acquire);
            *byte = word.to_le_bytes()[at as usize % 8];
        }
        Ok(())
    }

    fn write(&self, address: u64, from: &[u8]) -> Result<(), MemoryError> {
        for (at, &byte) in (address..).zip(from) {
            let shift = at % 8 * 8;
            let word = self.at(at)?;
            let old = word.load(Ordering::Acquire) & !(0xff << shift);
            word.store(old | u64::from(byte) << shift, Ordering::Release);
        }
        Ok(())
    }

    fn load(&self, address: u64, _: Width) -> Result<u64, MemoryError> {
        Ok(self.at(address)?.load(Ordering::Acquire))
    }

    fn store(&self, address: u64, _: Width, value: u64) -> Result<(), MemoryError> {
        self.at(address)?.store(value, Ordering::Release);
        Ok(())
    }

    fn compare_exchange(
        &self,
        address: u64,
        _: Width,
        current: u64,
        new: u64,
    ) -> Result<u64, MemoryError> {
        let (ok, err) = (Ordering::AcqRel, Ordering::Acquire);
        let done = self.at(address)?.compare_exchange(current, new, ok, err);
        Ok(done.unwrap_or_else(|stood| stood))
    }
}

pub(crate) const ROOT: u64 = 0x1000;
pub(crate) const CONTEXT: u64 = 0x2000;
pub(crate) const DIRECTORY: u64 = 0x4000;
pub(crate) const PASIDS: u64 = 0x5000;
/// Bytes of memory.
pub(crate) const SIZE: u64 = 0x40_0000;

/// A unit whose one function of interest is 00:02.0.
pub(crate) struct World {
    pub(crate) ram: Arc<Flat>,
    pub(crate) unit: Arc<Vtd>,
    next: u64,
}

/// The function.
pub(crate) const DEVICE: RequesterId = RequesterId(0x10);

pub(crate) fn pasid(number: u32) -> Source {
    Source {
        pasid: Pasid::new(number),
        ..DEVICE.into()
    }
}

impl World {
    /// Legacy mode, with a root entry and an empty context table.
    pub(crate) fn legacy() -> Self {
        let world = Self::new(Capabilities::default().device_tlb(), ROOT);
        world.ram.set(ROOT, &[CONTEXT | 1, 0]);
        world
    }

    /// Scalable mode, with a context entry that takes everything and an empty
    /// PASID table. RID_PASID is 0.
    pub(crate) fn scalable() -> Self {
        let world = Self::new(
            Capabilities::default()
                .scalable()
                .nested()
                .device_tlb()
                .page_requests(),
            ROOT | 1 << 10,
        );
        world.ram.set(ROOT, &[CONTEXT | 1, (CONTEXT + 0x1000) | 1]);
        world.ram.set(CONTEXT + 0x10 * 32, &[DIRECTORY | 0x1d, 0]);
        world.ram.set(DIRECTORY, &[PASIDS | 1]);
        world
    }

    fn new(capabilities: Capabilities, root: u64) -> Self {
        let ram = Flat::new(SIZE);
        let unit = Vtd::builder(Arc::clone(&ram) as _).capabilities(capabilities);
        let unit = unit.build().unwrap();
        unit.live.set_root(root);
        unit.live.set_status(TRANSLATION);
        Self {
            ram,
            unit,
            next: 0x10_0000,
        }
    }

    /// Writes the legacy context entry of [`DEVICE`].
    pub(crate) fn context(&self, low: u64, high: u64) {
        self.ram.set(CONTEXT + 0x10 * 16, &[low, high]);
        self.forget();
    }

    /// Has the unit forget everything.
    pub(crate) fn forget(&self) {
        let all = [Invalidation::ContextGlobal, Invalidation::IotlbGlobal];
        self.unit.invalidate(&all);
    }

    /// Writes the first words of a PASID table entry.
    pub(crate) fn pasid(&self, pasid: u64, words: &[u64]) {
        self.ram.set(PASIDS + pasid * 64, words);
        self.forget();
    }

    /// Tables that map these: input, output, bytes, permissions, largest page.
    pub(crate) fn tables<F: Format>(
        &mut self,
        format: F,
        maps: &[(u64, u64, u64, Permissions, u32)],
    ) -> u64 {
        let ram = Arc::clone(&self.ram);
        let mut tables = Builder::new(format, &*ram, || {
            self.next += 0x1000;
            Some(self.next - 0x1000)
        })
        .unwrap();
        for &(input, output, bytes, permissions, largest) in maps {
            tables
                .map(input, output, bytes, permissions, largest)
                .unwrap();
        }
        tables.root()
    }

    /// Where the request leads: output address, bytes, rights.
    pub(crate) fn ask(&self, request: &Request) -> Result<(u64, u64, Rights), Fault> {
        let gate = Arc::new(Gate::new());
        let mut participant = gate.join();
        let guard = participant.enter();
        match self.unit.translate(&guard, request)? {
            Outcome::Memory(run) => Ok((run.address(), run.length(), run.rights())),
            outcome => panic!("{outcome:?}"),
        }
    }

    /// What an access of 8 bytes by the function leads to.
    pub(crate) fn access(&self, iova: u64, access: Access) -> Result<u64, Fault> {
        self.ask(&request(DEVICE, iova, 8, access))
            .map(|(output, ..)| output)
    }

    /// Why `request` is refused.
    pub(crate) fn reason(&self, request: &Request) -> Reason {
        let domain = match self.unit.enter(request.source, request.kind) {
            Ok(domain) => domain,
            Err(denied) => return denied.reason,
        };
        let address = request.span.first().0;
        let (access, privilege) = (request.access, request.privilege);
        let found = domain.walk(
            &self.unit.limits,
            &*self.unit.ram,
            address,
            access,
            privilege,
        );
        found.expect_err("a reason").reason
    }

    /// Why a read of the function at this address is refused.
    pub(crate) fn read_reason(&self, iova: u64) -> Reason {
        self.reason(&request(DEVICE, iova, 8, Access::Read))
    }
}

pub(crate) fn request(
    source: impl Into<Source>,
    iova: u64,
    length: u64,
    access: Access,
) -> Request {
    Request::new(
        source.into(),
        Span::with_length(Iova(iova), length).unwrap(),
        access,
    )
}

pub(crate) fn privileged(request: Request) -> Request {
    Request {
        privilege: Privilege::Supervisor,
        ..request
    }
}

pub(crate) fn of_kind(request: Request, kind: Kind) -> Request {
    Request { kind, ..request }
}
