//! An endpoint as software, its model and its host see it.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use std::sync::{Arc, Mutex};

use iogate_dma::{Interrupts, Line, Message, Source};
use iogate_pci::config::{capability, register};
use iogate_pci::{
    Bar, Builder, ConfigEffect, Endpoint, Identity, InterruptError, LayoutError, Msi, MsixLayout,
};

#[derive(Default)]
struct Told(Mutex<(Vec<Message>, Vec<Line>)>);

impl Interrupts for Told {
    fn message(&self, _: Source, message: Message) {
        self.0.lock().unwrap().0.push(message);
    }
    fn line(&self, _: Source, line: Line) {
        self.0.lock().unwrap().1.push(line);
    }
}

impl Told {
    fn data(&self) -> Vec<u32> {
        let messages = std::mem::take(&mut self.0.lock().unwrap().0);
        messages.iter().map(|message| message.data).collect()
    }
    fn lines(&self) -> Vec<Line> {
        std::mem::take(&mut self.0.lock().unwrap().1)
    }
}

const MSIX: MsixLayout = MsixLayout {
    vectors: 70,
    table_bar: 2,
    table_offset: 0x1000,
    pba_bar: 2,
    pba_offset: 0x2000,
};

fn builder() -> Builder {
    Endpoint::builder(Identity {
        vendor: 0x1234,
        device: 0x5678,
        subsystem_vendor: 0x9abc,
        subsystem: 0xdef0,
        class: 0x01_0802,
        revision: 3,
    })
    .bar(Bar::memory32(0, 0x1000))
    .bar(Bar::io(1, 0x20))
    .bar(Bar::memory64(2, 1 << 32).prefetchable())
    .pin_a()
    .power_management()
    .msi(Msi {
        vectors: 4,
        maskable: true,
    })
    .msix(MSIX)
    .express()
}

fn endpoint() -> (Endpoint, Arc<Told>) {
    let told = Arc::new(Told::default());
    let source = "0000:01:00.0".parse().unwrap();
    let endpoint = builder().build(source, told.clone()).unwrap();
    write16(&endpoint, register::COMMAND, 0x0006);
    (endpoint, told)
}

fn read<const N: usize>(endpoint: &Endpoint, at: u16) -> [u8; N] {
    let mut bytes = [0; N];
    endpoint.read_config(at.into(), &mut bytes);
    bytes
}

fn read16(endpoint: &Endpoint, at: u16) -> u16 {
    u16::from_le_bytes(read(endpoint, at))
}

fn read32(endpoint: &Endpoint, at: u16) -> u32 {
    u32::from_le_bytes(read(endpoint, at))
}

fn write16(endpoint: &Endpoint, at: u16, value: u16) {
    let effect = endpoint.write_config(at.into(), &value.to_le_bytes());
    assert_eq!(effect, ConfigEffect::None);
}

fn write32(endpoint: &Endpoint, at: u16, value: u32) {
    let effect = endpoint.write_config(at.into(), &value.to_le_bytes());
    assert_eq!(effect, ConfigEffect::None);
}

fn message(data: u32) -> Message {
    Message {
        address: 0xfee0_0000,
        data,
    }
}

#[test]
fn the_header_identifies_the_function_and_cannot_be_changed() {
    let (endpoint, _) = endpoint();
    let _ = endpoint.write_config(0, &[0xff; 4]);
    let _ = endpoint.write_config(8, &[0xff; 4]);
    assert_eq!(read32(&endpoint, 0), 0x5678_1234);
    assert_eq!(read32(&endpoint, 8), 0x0108_0203);
    assert_eq!(read32(&endpoint, 0x2c), 0xdef0_9abc);
    assert_eq!(read::<1>(&endpoint, 0x3d), [1]);
    // Capabilities List.
    assert_eq!(read16(&endpoint, register::STATUS), 0x0010);
}

#[test]
fn writing_ones_to_a_bar_gives_its_size() {
    let (endpoint, _) = endpoint();
    for index in 0..6 {
        write32(&endpoint, 0x10 + index * 4, u32::MAX);
    }
    let bars: Vec<u32> = (0..6).map(|i| read32(&endpoint, 0x10 + i * 4)).collect();
    // 4 KiB of memory; 32 ports; 4 GiB prefetchable of 64 bits; none; none.
    assert_eq!(bars, [0xffff_f000, 0xffff_ffe1, 0xc, 0xffff_ffff, 0, 0]);
    assert_eq!(read32(&endpoint, 0x30), 0);
}

#[test]
fn bar_addresses_are_kept_over_a_reset_and_the_command_register_is_not() {
    let (endpoint, _) = endpoint();
    write32(&endpoint, 0x10, 0xe000_0000);
    write32(&endpoint, 0x1c, 0x12);
    write16(&endpoint, register::COMMAND, 0x0407);
    let life = endpoint.life();
    endpoint.reset();
    assert_ne!(endpoint.life(), life);
    assert_eq!(endpoint.bar_address(0), Some(0xe000_0000));
    assert_eq!(endpoint.bar_address(2), Some(0x12_0000_0000));
    assert_eq!(endpoint.bar_address(3), None);
    assert_eq!(read16(&endpoint, register::COMMAND), 0);
    assert!(!endpoint.command().bus_master());
}

#[test]
fn capabilities_form_a_list() {
    let (endpoint, _) = endpoint();
    let mut ids = Vec::new();
    let mut at = u16::from(read::<1>(&endpoint, register::CAPABILITIES)[0]);
    while at != 0 {
        let [id, next] = read(&endpoint, at);
        assert_eq!(endpoint.capability(id), Some(at));
        ids.push(id);
        at = next.into();
    }
    assert_eq!(ids, [0x01, 0x05, 0x11, 0x10]);
    assert_eq!(endpoint.capability(capability::VENDOR), None);
    // No extended capabilities.
    assert_eq!(read32(&endpoint, register::EXTENDED), 0);
}

#[test]
fn a_write_of_initiate_function_level_reset_asks_for_one() {
    let (endpoint, _) = endpoint();
    let control = endpoint.capability(capability::EXPRESS).unwrap() + 8;
    // Device Capabilities: Function Level Reset.
    assert_eq!(read32(&endpoint, control - 4) & 1 << 28, 1 << 28);
    let asked = endpoint.write_config(control.into(), &0x8000_u16.to_le_bytes());
    assert_eq!(asked, ConfigEffect::FunctionReset);
    let asked = endpoint.write_config(u64::from(control) - 3, &[0, 0, 0, 0, 0x80]);
    assert_eq!(asked, ConfigEffect::FunctionReset);
    assert_eq!(read16(&endpoint, control) & 0x8000, 0);
    write16(&endpoint, control, 0x7fff);
}

#[test]
fn a_line_is_shown_in_status_and_silenced_by_interrupt_disable() {
    let (endpoint, told) = endpoint();
    endpoint.set_line(Line::Asserted);
    endpoint.set_line(Line::Asserted);
    assert_eq!(told.lines(), [Line::Asserted]);
    assert_eq!(read16(&endpoint, register::STATUS) & 8, 8);
    write16(&endpoint, register::COMMAND, 0x0406);
    assert_eq!(told.lines(), [Line::Deasserted]);
    assert_eq!(read16(&endpoint, register::STATUS) & 8, 8);
    write16(&endpoint, register::COMMAND, 0x0006);
    assert_eq!(told.lines(), [Line::Asserted]);
    // Enabling messages silences the pin as well.
    endpoint.enable_msix().unwrap();
    assert_eq!(told.lines(), [Line::Deasserted]);
    endpoint.disable_messages();
    assert_eq!(told.lines(), [Line::Asserted]);
    endpoint.reset();
    assert_eq!(told.lines(), [Line::Deasserted]);
    assert_eq!(read16(&endpoint, register::STATUS) & 8, 0);
}

#[test]
fn msi_sends_the_vector_in_the_low_bits_of_the_data() {
    let (endpoint, told) = endpoint();
    endpoint.raise(1);
    assert!(told.data().is_empty(), "nothing is enabled");
    endpoint.enable_msi(4, message(0x40)).unwrap();
    assert!(endpoint.msi_enabled());
    for vector in 0..5 {
        endpoint.raise(vector);
    }
    assert_eq!(told.data(), [0x40, 0x41, 0x42, 0x43]);
    // With one vector allotted, all are that one.
    endpoint.enable_msi(1, message(0x41)).unwrap();
    endpoint.raise(3);
    assert_eq!(told.data(), [0x41]);
    let error = InterruptError::Vectors {
        asked: 5,
        offered: 4,
    };
    assert_eq!(endpoint.enable_msi(5, message(0)), Err(error));
    assert!(endpoint.enable_msi(0, message(0)).is_err());
}

#[test]
fn a_masked_msi_vector_is_pending_until_unmasked() {
    let (endpoint, told) = endpoint();
    let msi = endpoint.capability(capability::MSI).unwrap();
    endpoint.enable_msi(4, message(0x40)).unwrap();
    write32(&endpoint, msi + 16, 0b0100);
    endpoint.raise(2);
    endpoint.raise(2);
    assert_eq!((told.data(), read32(&endpoint, msi + 20)), (vec![], 0b0100));
    write32(&endpoint, msi + 16, 0);
    assert_eq!((told.data(), read32(&endpoint, msi + 20)), (vec![0x42], 0));
}

#[test]
fn software_programs_msi_by_configuration_space() {
    let (endpoint, told) = endpoint();
    let msi = endpoint.capability(capability::MSI).unwrap();
    // 4 vectors, 64-bit, maskable.
    assert_eq!(read16(&endpoint, msi + 2), 0x0184);
    write32(&endpoint, msi + 4, 0xfee0_1003);
    write32(&endpoint, msi + 8, 1);
    write16(&endpoint, msi + 12, 0x4321);
    write16(&endpoint, msi + 2, 1);
    endpoint.raise(0);
    let sent = told.0.lock().unwrap().0[0];
    assert_eq!((sent.address, sent.data), (0x1_fee0_1000, 0x4321));
}

#[test]
fn msix_vectors_are_masked_at_power_on_and_pend() {
    let (endpoint, told) = endpoint();
    let msix = endpoint.msix().unwrap();
    msix.program(69, message(7));
    endpoint.enable_msix().unwrap();
    endpoint.raise(69);
    endpoint.raise(70);
    assert!(msix.is_pending(69) && msix.is_masked(69) && told.data().is_empty());
    let mut pending = [0; 16];
    assert!(endpoint.read_msix(2, 0x2000, &mut pending));
    assert_eq!(pending[8], 1 << 5);
    msix.unmask(69);
    assert_eq!((told.data(), msix.is_pending(69)), (vec![7], false));
    msix.set_function_mask(true);
    endpoint.raise(69);
    assert!(told.data().is_empty());
    msix.set_function_mask(false);
    assert_eq!(told.data(), [7]);
}

#[test]
fn software_programs_msix_by_its_table() {
    let (endpoint, told) = endpoint();
    let msix = endpoint.capability(capability::MSIX).unwrap();
    assert_eq!(read16(&endpoint, msix + 2), 69);
    assert_eq!(read32(&endpoint, msix + 4), 0x1002);
    assert_eq!(read32(&endpoint, msix + 8), 0x2002);
    write16(&endpoint, msix + 2, 0x8000);
    let entry = [
        0x00, 0x10, 0xe0, 0xfe, 0, 0, 0, 0, 0x55, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff,
    ];
    assert!(endpoint.write_msix(2, 0x1010, &entry));
    let mut back = [0; 16];
    assert!(endpoint.read_msix(2, 0x1010, &mut back));
    // Reserved bits of Vector Control are not kept.
    assert_eq!((&back[..12], &back[12..]), (&entry[..12], &[0; 4][..]));
    endpoint.raise(1);
    assert_eq!(told.data(), [0x55]);
    assert!(!endpoint.read_msix(0, 0x1010, &mut back));
    assert!(!endpoint.write_msix(2, 0x1000 + 70 * 16, &entry));
    assert!(!endpoint.read_msix(2, u64::MAX - 3, &mut back));
    // An access that begins before the table takes its part of it.
    assert!(endpoint.write_msix(2, 0xff8, &[0xab; 12]));
    assert_eq!(
        endpoint.msix().unwrap().message(0).unwrap().address,
        0xabab_aba8
    );
}

#[test]
fn without_bus_master_messages_wait() {
    let (endpoint, told) = endpoint();
    endpoint.enable_msi(1, message(9)).unwrap();
    write16(&endpoint, register::COMMAND, 0x0002);
    endpoint.raise(0);
    assert!(told.data().is_empty());
    write16(&endpoint, register::COMMAND, 0x0006);
    assert_eq!(told.data(), [9]);
}

#[test]
fn what_was_pending_is_forgotten_when_messages_are_disabled() {
    let (endpoint, told) = endpoint();
    let msix = endpoint.msix().unwrap();
    let control = endpoint.capability(capability::MSIX).unwrap() + 2;
    write16(&endpoint, control, 0x8000);
    endpoint.raise(0);
    write16(&endpoint, control, 0x0000);
    assert!(!msix.is_pending(0));
    write16(&endpoint, control, 0x8000);
    msix.unmask(0);
    assert!(told.data().is_empty());
}

#[test]
fn layouts_that_cannot_be_are_errors() {
    let source: Source = "0000:01:00.0".parse().unwrap();
    let refused = |builder: Builder| {
        let told: Arc<dyn Interrupts> = Arc::new(Told::default());
        builder.build(source, told).err().unwrap()
    };
    let empty = || Endpoint::builder(Identity::default());
    assert_eq!(
        refused(empty().bar(Bar::memory32(0, 24))),
        LayoutError::Bar(0)
    );
    assert_eq!(
        refused(empty().bar(Bar::memory64(5, 64))),
        LayoutError::Bar(5)
    );
    assert_eq!(refused(empty().bar(Bar::io(0, 512))), LayoutError::Bar(0));
    assert_eq!(
        refused(builder().bar(Bar::memory32(3, 64))),
        LayoutError::BarTwice(3)
    );
    assert_eq!(
        refused(empty().msi(Msi {
            vectors: 3,
            maskable: false
        })),
        LayoutError::Msi(3)
    );
    assert_eq!(refused(empty().msix(MSIX)), LayoutError::Msix);
    assert_eq!(refused(builder().express()), LayoutError::Capability(0x10));
    assert_eq!(
        refused(empty().capability(capability::VENDOR, &[0; 200], &[])),
        LayoutError::Capability(9)
    );
}

#[test]
fn extended_capabilities_are_linked() {
    let source = "0000:01:00.0".parse().unwrap();
    let endpoint = builder()
        .extended_capability(0x0003, 1, &[1, 2, 3, 4, 5, 6, 7, 8])
        .extended_capability(0x000b, 2, &[9; 4])
        .build(source, Arc::new(Told::default()))
        .unwrap();
    assert_eq!(read32(&endpoint, 0x100), 0x10c1_0003);
    assert_eq!(read32(&endpoint, 0x104), 0x0403_0201);
    assert_eq!(read32(&endpoint, 0x10c), 0x0002_000b);
}

/// The extended capabilities: id and offset, by the list that software follows.
fn extended(endpoint: &Endpoint) -> Vec<(u16, u16)> {
    let mut at = 0x100;
    let mut found = Vec::new();
    while at != 0 {
        let header = read32(endpoint, at);
        found.push((header as u16, at));
        at = (header >> 20) as u16;
    }
    found
}

#[test]
fn an_integrated_function_has_no_link_and_software_enables_its_ats_and_pasids() {
    let plain = builder().pasid(20);
    let endpoint = plain
        .build("00:05.0".parse().unwrap(), Arc::new(Told::default()))
        .unwrap();
    endpoint.integrate(true);
    let express = endpoint.capability(capability::EXPRESS).unwrap();
    assert_eq!(read16(&endpoint, express + 2) >> 4 & 0xf, 9);
    assert_eq!(read32(&endpoint, express + 0x0c), 0);
    let [(pasid_id, pasid), (ats_id, ats)] = extended(&endpoint)[..] else {
        panic!("{:x?}", extended(&endpoint));
    };
    assert_eq!((pasid_id, ats_id), (0x1b, 0x0f));
    assert_eq!((endpoint.ats_enabled(), endpoint.pasid_bits()), (false, 0));
    write16(&endpoint, ats + 6, 0x8000);
    write16(&endpoint, pasid + 6, 1);
    assert_eq!((endpoint.ats_enabled(), endpoint.pasid_bits()), (true, 20));
    endpoint.reset();
    assert_eq!((endpoint.ats_enabled(), endpoint.pasid_bits()), (false, 0));
    // The capability and the link to it are still there.
    assert_eq!(extended(&endpoint).len(), 2);
}

#[test]
fn a_function_behind_a_port_has_no_ats_and_its_pasids_are_the_hosts() {
    let endpoint = builder().pasid(20);
    let endpoint = endpoint
        .build("01:00.0".parse().unwrap(), Arc::new(Told::default()))
        .unwrap();
    let [(_, pasid)] = extended(&endpoint)[..] else {
        panic!("{:x?}", extended(&endpoint));
    };
    endpoint.enable_pasids(8);
    write16(&endpoint, pasid + 6, 0);
    endpoint.reset();
    assert_eq!((endpoint.ats_enabled(), endpoint.pasid_bits()), (false, 8));
}
