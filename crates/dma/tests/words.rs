//! Single words through a port: one access where memory can do that, bytes
//! where it cannot.
#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::{Arc, Mutex};

use iogate_dma::{
    Attachment, DmaError, Fault, FaultSink, Gate, InFlight, Iova, Memory, MemoryError, Outcome,
    Port, Request, Rights, Run, Source, Translate, Width,
};

/// Eight bytes at address 0, and what was done to them. Words are aligned.
#[derive(Default)]
struct Word(Mutex<([u8; 8], Vec<&'static str>)>);

impl Memory for Word {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), MemoryError> {
        let mut word = self.0.lock().unwrap();
        word.1.push("read");
        let first = address as usize;
        into.copy_from_slice(&word.0[first..first + into.len()]);
        Ok(())
    }
    fn write(&self, address: u64, from: &[u8]) -> Result<(), MemoryError> {
        let mut word = self.0.lock().unwrap();
        word.1.push("write");
        let first = address as usize;
        word.0[first..first + from.len()].copy_from_slice(from);
        Ok(())
    }
    fn load(&self, address: u64, width: Width) -> Result<u64, MemoryError> {
        if !address.is_multiple_of(width.bytes()) {
            return Err(MemoryError::Misaligned { address, width });
        }
        let mut word = self.0.lock().unwrap();
        word.1.push("load");
        let mask = u64::MAX >> (64 - 8 * width.bytes());
        Ok(u64::from_le_bytes(word.0) >> (8 * address) & mask)
    }
    fn store(&self, address: u64, width: Width, value: u64) -> Result<(), MemoryError> {
        if !address.is_multiple_of(width.bytes()) {
            return Err(MemoryError::Misaligned { address, width });
        }
        let mut word = self.0.lock().unwrap();
        word.1.push("store");
        let (first, bytes) = (address as usize, width.bytes() as usize);
        word.0[first..first + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
        Ok(())
    }
    fn compare_exchange(&self, address: u64, _: Width, _: u64, _: u64) -> Result<u64, MemoryError> {
        Err(MemoryError::NotAtomic { address })
    }
}

/// Every address is itself, in pieces of four bytes.
struct Pieces(Word);

impl Translate for Pieces {
    fn translate<'g>(
        &'g self,
        _: &'g InFlight<'_>,
        request: &Request,
    ) -> Result<Outcome<'g>, Fault> {
        let first = request.span.first().0;
        let length = (4 - first % 4).min(request.span.length().unwrap());
        let run = Run::new(&self.0, first, length, Rights::READ_WRITE);
        Ok(Outcome::Memory(run))
    }
}

struct Nobody;

impl FaultSink for Nobody {
    fn fault(&self, _: &Fault) {}
    fn answered(&self, _: Source, _: &str) {}
}

#[test]
fn a_word_is_one_access_where_it_lies_aligned_in_one_piece_and_bytes_elsewhere() {
    let pieces = Arc::new(Pieces(Word::default()));
    let attachment = Arc::new(Attachment::new());
    attachment.set(Some(pieces.clone()));
    let source = "01:00.0".parse().unwrap();
    let gate = Arc::new(Gate::new());
    let mut port = Port::new(source, attachment, gate.join(), Arc::new(Nobody));
    for (address, width, done) in [
        (4, Width::Dword, &["store", "load"][..]),
        (2, Width::Word, &["store", "load"]),
        (1, Width::Word, &["write", "read"]),
        (0, Width::Qword, &["write", "write", "read", "read"]),
        (3, Width::Word, &["write", "write", "read", "read"]),
    ] {
        let mask = u64::MAX >> (64 - 8 * width.bytes());
        let value = 0x8877_6655_4433_2211 & mask;
        let iova = Iova(address);
        assert_eq!(port.store_while(iova, width, value, || true), Ok(()));
        assert_eq!(port.load_while(iova, width, || true), Ok(value));
        let did = std::mem::take(&mut pieces.0.0.lock().unwrap().1);
        assert_eq!(did, done, "{address} {width:?}");
    }
    let stopped = port.store_while(Iova(0), Width::Byte, 0, || false);
    assert_eq!(stopped, Err(DmaError::Stopped));
    assert!(pieces.0.0.lock().unwrap().1.is_empty());
}
