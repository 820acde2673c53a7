//! What a device with an injection before it goes through.
#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::{Arc, Mutex};

use iogate_dma::{
    Access, Attachment, DmaError, Fault, FaultReason, FaultSink, Gate, InFlight, Interrupts, Iova,
    Line, Memory, MemoryError, Message, Outcome, Port, Request, Rights, Run, Source, Translate,
    Width,
};
use iogate_inject::Injection;

fn injection(rules: &str) -> Arc<Injection> {
    let devices = [("01:00.0", "edu"), ("02:00.0", "nvme")];
    let devices = devices.map(|(at, model)| (at.parse().unwrap(), model.to_owned()));
    Arc::new(Injection::new(&[rules.to_owned()], 1, &devices).unwrap())
}

fn edu() -> Source {
    "01:00.0".parse().unwrap()
}

/// Memory everywhere, in pieces of 4 KiB.
struct Pages;

impl Memory for Pages {
    fn read(&self, _: u64, into: &mut [u8]) -> Result<(), MemoryError> {
        into.fill(7);
        Ok(())
    }
    fn write(&self, _: u64, _: &[u8]) -> Result<(), MemoryError> {
        Ok(())
    }
    fn load(&self, _: u64, _: Width) -> Result<u64, MemoryError> {
        Ok(0)
    }
    fn store(&self, _: u64, _: Width, _: u64) -> Result<(), MemoryError> {
        Ok(())
    }
    fn compare_exchange(&self, _: u64, _: Width, _: u64, _: u64) -> Result<u64, MemoryError> {
        Ok(0)
    }
}

impl Translate for Pages {
    fn translate<'g>(
        &'g self,
        _: &'g InFlight<'_>,
        request: &Request,
    ) -> Result<Outcome<'g>, Fault> {
        let first = request.span.first().0;
        let to_end = 4096 - first % 4096;
        let length = request.span.length().unwrap().min(to_end);
        Ok(Outcome::Memory(Run::new(
            self,
            first,
            length,
            Rights::READ_WRITE,
        )))
    }
}

#[derive(Default)]
struct Told(Mutex<Vec<Fault>>);

impl FaultSink for Told {
    fn fault(&self, fault: &Fault) {
        self.0.lock().unwrap().push(*fault);
    }
    fn answered(&self, _: Source, _: &str) {}
}

fn port(injection: &Arc<Injection>, source: Source, told: &Arc<Told>) -> Port {
    let attachment = Attachment::new();
    attachment.set(Some(injection.space(Arc::new(Pages))));
    let gate = Arc::new(Gate::new());
    Port::new(source, Arc::new(attachment), gate.join(), told.clone())
}

#[test]
fn an_access_over_many_pages_counts_once() {
    let injection = injection("dma:fault@3");
    let told = Arc::new(Told::default());
    let mut port = port(&injection, edu(), &told);
    let mut bytes = [0; 3 * 4096];
    assert_eq!(port.read(Iova(0x1800), &mut bytes), Ok(()));
    assert_eq!(port.write(Iova(0x1800), &bytes), Ok(()));
    let Err(DmaError::Refused(fault)) = port.read(Iova(0x1800), &mut bytes) else {
        panic!("the third was not refused");
    };
    assert_eq!(
        (fault.reason, fault.access),
        (FaultReason::Injected, Access::Read)
    );
    assert_eq!(fault.span.first(), Iova(0x1800));
    assert_eq!(port.read(Iova(0x1800), &mut bytes), Ok(()));
    assert_eq!(*told.0.lock().unwrap(), [fault]);
}

#[test]
fn each_device_is_counted_by_itself() {
    let injection = injection("dma:fault@2");
    let told = Arc::new(Told::default());
    let mut first = port(&injection, edu(), &told);
    let mut second = port(&injection, "02:00.0".parse().unwrap(), &told);
    assert!(first.write(Iova(0), &[1]).is_ok());
    assert!(second.write(Iova(0), &[1]).is_ok());
    assert!(first.write(Iova(0), &[1]).is_err());
    assert!(second.write(Iova(0), &[1]).is_err());
}

#[test]
fn the_same_seed_refuses_the_same_accesses() {
    let refused = || -> Vec<bool> {
        let injection = injection("dma:fault@20%");
        let mut port = port(&injection, edu(), &Arc::default());
        (0..100)
            .map(|_| port.write(Iova(0), &[1]).is_err())
            .collect()
    };
    let first = refused();
    assert!(first.contains(&true) && first.contains(&false));
    assert_eq!(first, refused());
}

#[derive(Default)]
struct Heard(Mutex<Vec<u32>>);

impl Interrupts for Heard {
    fn message(&self, _: Source, message: Message) {
        self.0.lock().unwrap().push(message.data);
    }
    fn line(&self, _: Source, _: Line) {}
}

#[test]
fn only_the_message_meant_is_lost() {
    let injection = injection("irq:drop@edu@2");
    let heard = Arc::new(Heard::default());
    let before = injection.interrupts(heard.clone());
    for data in 0..4 {
        before.message(
            edu(),
            Message {
                address: 0xfee0_0000,
                data,
            },
        );
    }
    assert_eq!(*heard.0.lock().unwrap(), [0, 2, 3]);
    assert_eq!(injection.summary(), ["injected irq:drop@edu@2: once"]);
}
