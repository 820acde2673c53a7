//! edu: bytes through the device's buffer and back, with an interrupt at the
//! end. Registers: QEMU, docs/specs/edu.rst.

use std::io;

use super::{Bench, PAGE};

const IDENTIFICATION: u64 = 0x00;
const INTERRUPT_STATUS: u64 = 0x24;
const INTERRUPT_ACKNOWLEDGE: u64 = 0x64;
const DMA_SOURCE: u64 = 0x80;
const DMA_DESTINATION: u64 = 0x88;
const DMA_COUNT: u64 = 0x90;
const DMA_COMMAND: u64 = 0x98;

const START: u32 = 1;
const TO_MEMORY: u32 = 2;
const INTERRUPT: u32 = 4;

const DEVICE_BUFFER: u64 = 0x4_0000;
const MSI: u32 = 1;

pub(super) fn exercise(bench: &Bench<'_>) -> io::Result<String> {
    let identification = bench.read32(IDENTIFICATION)?;
    if identification & 0xffff != 0x00ed {
        return Err(io::Error::other(format!(
            "identification register reads {identification:#010x}"
        )));
    }
    let sent: Vec<u8> = (0..PAGE).map(|n| (n * 7 + 3) as u8).collect();
    bench.buffer.write(0, &sent);
    bench.use_interrupt(MSI)?;
    transfer(bench, bench.iova(0), DEVICE_BUFFER, START)?;
    bench.wait_until("the DMA did not end", || {
        Ok(bench.read32(DMA_COMMAND)? & START == 0)
    })?;
    let back = START | TO_MEMORY | INTERRUPT;
    transfer(bench, DEVICE_BUFFER, bench.iova(PAGE), back)?;
    bench.wait_for_interrupt()?;
    let status = bench.read32(INTERRUPT_STATUS)?;
    bench.write32(INTERRUPT_ACKNOWLEDGE, status)?;
    let mut received = vec![0; PAGE];
    bench.buffer.read(PAGE, &mut received);
    if received != sent {
        return Err(io::Error::other("the bytes that came back differ"));
    }
    bench.finish(MSI)?;
    Ok(format!("{PAGE} bytes to the device and back, 1 MSI"))
}

fn transfer(bench: &Bench<'_>, from: u64, to: u64, command: u32) -> io::Result<()> {
    bench.write64(DMA_SOURCE, from)?;
    bench.write64(DMA_DESTINATION, to)?;
    bench.write64(DMA_COUNT, PAGE as u64)?;
    bench.write32(DMA_COMMAND, command)
}
