//! A VMM's whole use of a unit: guest RAM of rust-vmm, a device behind a VT-d
//! unit, a container that follows the device's domain. Here the guest is a few
//! register writes; a VMM passes on what its guest writes.

use std::error::Error;
use std::sync::{Arc, Mutex, mpsc};

use iogate_dma::{Change, Iova, Listener, Message, Partial, RequesterId, Source};
use iogate_paging::vtd::{Levels, SecondStage};
use iogate_paging::{Builder, Permissions};
use iogate_shadow::{Section, Shadow};
use iogate_vm_memory::Ram;
use iogate_vtd::{Capabilities, Vtd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Stands for a container of VFIO: map and unmap calls.
#[derive(Default)]
struct Container(Mutex<Vec<Change>>);

impl Listener for Container {
    fn apply(&self, changes: &[Change]) -> Result<(), Partial> {
        self.0.lock().unwrap().extend_from_slice(changes);
        Ok(())
    }
}

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let regions = [(GuestAddress(0), 4 << 20)];
    let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&regions)?);
    let ram = Arc::new(Ram::new(Arc::clone(&memory)));
    let rid = RequesterId::new(0, 5, 0).ok_or("no such function")?;
    let (irqchip, interrupts) = mpsc::channel();
    let unit = Vtd::builder(Arc::clone(&ram) as _)
        .capabilities(Capabilities::default())
        .scope([rid])
        .deliver(move |message: Message| {
            let _ = irqchip.send(message);
        })
        .build()?;

    // The guest: 16 pages at I/O addresses from 1 GiB on, domain 7.
    let mut pages = (0x10_0000..).step_by(0x1000);
    let mut tables = Builder::new(SecondStage::new(Levels::Four), &*ram, || pages.next())?;
    tables.map(0x4000_0000, 0x20_0000, 0x1_0000, Permissions::ALL, 12)?;
    memory.write_obj(0x2000 | 1_u64, GuestAddress(0x1000))?;
    let context = [tables.root() | 1, 7 << 8 | 2];
    memory.write_obj(context, GuestAddress(0x2000 + u64::from(rid.0) * 16))?;
    unit.write(0x20, &0x1000_u64.to_le_bytes());
    unit.write(0x18, &(1_u32 << 30).to_le_bytes());
    unit.write(0x18, &(1_u32 << 31).to_le_bytes());

    // An assigned device: its container is told of one contiguous mapping.
    let container = Arc::new(Container::default());
    let guard = Shadow::of(Arc::clone(&unit) as _).follow(
        rid,
        Section::ALL,
        Arc::clone(&container) as _,
    )?;
    println!("told: {:x?}", container.0.lock().unwrap());

    // An emulated device: DMA, a refused DMA that the guest is told of, an MSI.
    let mut port = unit.port(Source::from(rid));
    port.write(Iova(0x4000_0ff8), b"over a page's end")?;
    let refused = port.read(Iova(0x5000_0000), &mut [0; 8]);
    println!("{}", refused.err().ok_or("it was to be refused")?);
    unit.send_msi(
        rid,
        Message {
            address: 0xfee0_0000,
            data: 0x41,
        },
    );
    println!("interrupt: {:x?}", interrupts.try_recv()?);

    unit.restore(&unit.save())?;
    drop(guard);
    println!("told in all: {} changes", container.0.lock().unwrap().len());
    Ok(())
}
