//! A unit whose guest has second-stage tables of three levels, and a listener
//! that holds to the letter of its contract.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use iogate_dma::{
    Change, DomainKey, Fault, GuestDomains, Invalidated, Iova, Listener, Mapping, Memory,
    MemoryError, Observer, Partial, Privilege, RequesterId, Rights, Scan, Scope, Source, Span,
    Width,
};
use iogate_paging::vtd::{Levels, SecondStage};
use iogate_paging::{Permissions, Scanned, scan};

pub(crate) fn span(first: u64, last: u64) -> Span<Iova> {
    Span::new(Iova(first), Iova(last)).unwrap()
}

pub(crate) fn source(number: u16) -> Source {
    RequesterId(number).into()
}

/// Memory from address 0 on, in entries of 8 bytes.
pub(crate) struct Flat(Vec<AtomicU64>);

impl Flat {
    pub(crate) fn pages(count: usize) -> Self {
        Self((0..count * 512).map(|_| AtomicU64::new(0)).collect())
    }

    fn at(&self, address: u64) -> Result<&AtomicU64, MemoryError> {
        let absent = MemoryError::Absent { address };
        self.0.get((address / 8) as usize).ok_or(absent)
    }

    pub(crate) fn get(&self, address: u64) -> u64 {
        self.at(address).map_or(0, |at| at.load(Ordering::Acquire))
    }

    pub(crate) fn set(&self, address: u64, entry: u64) {
        self.at(address).unwrap().store(entry, Ordering::Release);
    }
}

impl Memory for Flat {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), MemoryError> {
        self.at(address + into.len() as u64 - 1)?;
        let from = self.0[(address / 8) as usize..].iter();
        for (bytes, entry) in into.chunks_exact_mut(8).zip(from) {
            bytes.copy_from_slice(&entry.load(Ordering::Acquire).to_le_bytes());
        }
        Ok(())
    }

    fn write(&self, address: u64, _from: &[u8]) -> Result<(), MemoryError> {
        Err(MemoryError::Absent { address })
    }

    fn load(&self, address: u64, _width: Width) -> Result<u64, MemoryError> {
        Ok(self.at(address)?.load(Ordering::Acquire))
    }

    fn store(&self, address: u64, _width: Width, value: u64) -> Result<(), MemoryError> {
        self.at(address)?.store(value, Ordering::Release);
        Ok(())
    }

    fn compare_exchange(
        &self,
        address: u64,
        _width: Width,
        _current: u64,
        _new: u64,
    ) -> Result<u64, MemoryError> {
        Err(MemoryError::NotAtomic { address })
    }
}

/// Where a root table is, and the guest's number for the domain.
pub(crate) type Context = (u64, u32);

pub(crate) struct Unit {
    pub(crate) memory: Flat,
    contexts: Mutex<BTreeMap<Source, Context>>,
    observers: Mutex<Vec<Weak<dyn Observer>>>,
    pub(crate) scans: Mutex<Vec<(Source, Span<Iova>)>>,
    pub(crate) faults: Mutex<Vec<Fault>>,
    /// Called when a scan has begun.
    pub(crate) meanwhile: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl Unit {
    pub(crate) fn new(pages: usize) -> Arc<Self> {
        Arc::new(Self {
            memory: Flat::pages(pages),
            contexts: Mutex::default(),
            observers: Mutex::default(),
            scans: Mutex::default(),
            faults: Mutex::default(),
            meanwhile: Mutex::default(),
        })
    }

    /// The guest writes a context entry.
    pub(crate) fn enter(&self, source: Source, context: Option<Context>) {
        let mut contexts = self.contexts.lock().unwrap();
        match context {
            Some(context) => contexts.insert(source, context),
            None => contexts.remove(&source),
        };
    }

    pub(crate) fn context(&self, source: Source) -> Option<Context> {
        self.contexts.lock().unwrap().get(&source).copied()
    }

    pub(crate) fn invalidate(&self, batch: &[Invalidated]) {
        let mut observers = self.observers.lock().unwrap();
        observers.retain(|observer| observer.strong_count() > 0);
        let observers: Vec<_> = observers.iter().filter_map(Weak::upgrade).collect();
        for observer in observers {
            observer.invalidated(batch);
        }
    }

    pub(crate) fn invalidate_one(&self, scope: Scope, span: Span<Iova>) {
        self.invalidate(&[Invalidated { scope, span }]);
    }

    pub(crate) fn invalidate_all(&self) {
        self.invalidate_one(Scope::Everything, Span::whole());
    }

    pub(crate) fn take_scans(&self) -> Vec<(Source, Span<Iova>)> {
        std::mem::take(&mut self.scans.lock().unwrap())
    }

    pub(crate) fn take_faults(&self) -> Vec<Fault> {
        std::mem::take(&mut self.faults.lock().unwrap())
    }

    /// The tables read by hand: what stands for the page of `iova`. VT-d 4.1
    /// section 9.8 for entries, 3.7 for levels.
    pub(crate) fn page(&self, source: Source, iova: u64) -> Option<(u64, u8)> {
        let (mut table, _) = self.context(source)?;
        if iova >> 39 != 0 {
            return None;
        }
        let mut rights = 3;
        for shift in [30, 21, 12] {
            let entry = self.memory.get(table + (iova >> shift & 511) * 8);
            rights &= entry & 3;
            if entry & 3 == 0 || rights == 0 {
                return None;
            }
            table = entry & 0x000f_ffff_ffff_f000;
            if shift == 12 || entry & 0x80 != 0 {
                return Some((table + (iova & ((1 << shift) - 1) & !0xfff), rights as u8));
            }
        }
        unreachable!("the lowest level ends the loop")
    }
}

impl GuestDomains for Unit {
    fn domain(&self, source: Source) -> Option<(DomainKey, u32)> {
        let (root, number) = self.context(source)?;
        Some((DomainKey([root, 0, 0, 0]), number))
    }

    fn scan(
        &self,
        source: Source,
        span: Span<Iova>,
        budget: usize,
        tell: &mut dyn FnMut(Mapping) -> ControlFlow<()>,
    ) -> Scan {
        self.scans.lock().unwrap().push((source, span));
        let meanwhile = self.meanwhile.lock().unwrap().take();
        if let Some(meanwhile) = meanwhile {
            meanwhile();
        }
        let Some((root, _)) = self.context(source) else {
            return Scan::Whole;
        };
        let format = SecondStage::new(Levels::Three);
        let memory: &dyn Memory = &self.memory;
        let range = (span.first().0, span.last().0);
        let scanned = scan(
            &format,
            root,
            &memory,
            range,
            Permissions::ALL,
            budget,
            |run| {
                tell(Mapping {
                    span: Span::new(Iova(run.first), Iova(run.last)).unwrap(),
                    output: run.output,
                    rights: run.permissions.rights(Privilege::User),
                })
            },
        );
        match scanned {
            Scanned::Whole => Scan::Whole,
            Scanned::Until(at) => Scan::Until(Iova(at)),
            Scanned::Stopped => Scan::Stopped,
        }
    }

    fn observe(&self, observer: Weak<dyn Observer>) {
        self.observers.lock().unwrap().push(observer);
    }

    fn report(&self, fault: &Fault) {
        self.faults.lock().unwrap().push(*fault);
    }
}

/// Which changes a listener refuses.
pub(crate) type Refuse = Box<dyn FnMut(&Change) -> Option<i32> + Send>;

/// A listener that keeps what it is told, and checks that it may be told so.
#[derive(Default)]
pub(crate) struct Device {
    pub(crate) mapped: Mutex<Vec<Mapping>>,
    batches: Mutex<Vec<Vec<Change>>>,
    refuse: Mutex<Option<Refuse>>,
}

impl Device {
    pub(crate) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// What it was told since it was asked last, refused or not.
    pub(crate) fn take(&self) -> Vec<Vec<Change>> {
        std::mem::take(&mut self.batches.lock().unwrap())
    }

    pub(crate) fn refuse(&self, refuse: impl FnMut(&Change) -> Option<i32> + Send + 'static) {
        *self.refuse.lock().unwrap() = Some(Box::new(refuse));
    }

    pub(crate) fn accept(&self) {
        *self.refuse.lock().unwrap() = None;
    }

    /// It forgets everything.
    pub(crate) fn forget(&self) {
        self.mapped.lock().unwrap().clear();
    }

    /// What it has for the page of `iova`.
    pub(crate) fn page(&self, iova: u64) -> Option<(u64, u8)> {
        let mapped = self.mapped.lock().unwrap();
        let mut found = mapped.iter().filter(|run| run.span.contains(Iova(iova)));
        let run = found.next()?;
        assert!(found.next().is_none(), "{iova:#x} is mapped twice");
        let output = run.output + (iova - run.span.first().0);
        Some((output & !0xfff, run.rights.bits()))
    }
}

fn check(mapped: &mut Vec<Mapping>, change: &Change) {
    match *change {
        Change::Map(new) => {
            assert_ne!(new.rights, Rights::NONE);
            let twice = mapped.iter().find(|run| run.span.overlaps(&new.span));
            assert_eq!(twice, None, "mapped twice: {new:?}");
            mapped.push(new);
        }
        Change::Unmap(gone) => {
            let old = std::mem::take(mapped);
            let mut bytes = 0;
            for run in old {
                let Some(both) = run.span.intersection(&gone) else {
                    mapped.push(run);
                    continue;
                };
                bytes += u128::from(both.last_offset()) + 1;
                let (first, last) = (run.span.first().0, run.span.last().0);
                if first < both.first().0 {
                    let span = span(first, both.first().0 - 1);
                    mapped.push(Mapping { span, ..run });
                }
                if both.last().0 < last {
                    mapped.push(Mapping {
                        span: span(both.last().0 + 1, last),
                        output: run.output + (both.last().0 + 1 - first),
                        rights: run.rights,
                    });
                }
            }
            let all = u128::from(gone.last_offset()) + 1;
            assert_eq!(bytes, all, "not mapped throughout: {gone}");
        }
    }
}

impl Listener for Device {
    fn apply(&self, changes: &[Change]) -> Result<(), Partial> {
        assert!(!changes.is_empty(), "called for nothing");
        self.batches.lock().unwrap().push(changes.to_vec());
        let mut mapped = self.mapped.lock().unwrap();
        for (applied, change) in changes.iter().enumerate() {
            let mut refuse = self.refuse.lock().unwrap();
            if let Some(errno) = refuse.as_mut().and_then(|refuse| refuse(change)) {
                return Err(Partial { applied, errno });
            }
            check(&mut mapped, change);
        }
        Ok(())
    }
}
