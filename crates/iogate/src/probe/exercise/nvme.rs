//! nvme: an admin queue and Identify Controller. NVM Express Base 1.4.

use std::io;

use super::{Bench, PAGE};

// Section 3.1, controller registers.
const CC: u64 = 0x14;
const CSTS: u64 = 0x1c;
const AQA: u64 = 0x24;
const ASQ: u64 = 0x28;
const ACQ: u64 = 0x30;
const SQ0_TAIL: u64 = 0x1000;

const ENABLE: u32 = 1;
/// 64-byte submission and 16-byte completion entries.
const ENTRY_SIZES: u32 = 6 << 16 | 4 << 20;
const READY: u32 = 1;
const ENTRIES: u32 = 4;

// Pages of the buffer.
const SUBMISSION: usize = 0;
const COMPLETION: usize = PAGE;
const DATA: usize = 2 * PAGE;

const MSIX: u32 = 2;

pub(super) fn exercise(bench: &Bench<'_>) -> io::Result<String> {
    bench.write32(CC, 0)?;
    bench.wait_until("the controller did not stop", || {
        Ok(bench.read32(CSTS)? & READY == 0)
    })?;
    bench.use_interrupt(MSIX)?;
    bench.write32(AQA, (ENTRIES - 1) << 16 | (ENTRIES - 1))?;
    bench.write64(ASQ, bench.iova(SUBMISSION))?;
    bench.write64(ACQ, bench.iova(COMPLETION))?;
    bench.write32(CC, ENTRY_SIZES | ENABLE)?;
    bench.wait_until("the controller did not become ready", || {
        Ok(bench.read32(CSTS)? & READY != 0)
    })?;

    bench
        .buffer
        .write(SUBMISSION, &identify_controller(bench.iova(DATA)));
    bench.write32(SQ0_TAIL, 1)?;
    bench.wait_for_interrupt()?;
    let mut completion = [0; 16];
    bench.buffer.read(COMPLETION, &mut completion);
    let status = u16::from_le_bytes([completion[14], completion[15]]);
    if status != 1 {
        return Err(io::Error::other(format!(
            "Identify completed with phase {} and status {:#x}",
            status & 1,
            status >> 1
        )));
    }
    let mut data = [0; 72];
    bench.buffer.read(DATA, &mut data);
    let text = |range: std::ops::Range<usize>| {
        let bytes = data.get(range).unwrap_or_default();
        String::from_utf8_lossy(bytes).trim().to_owned()
    };
    let (serial, model) = (text(4..24), text(24..64));
    bench.write32(CC, 0)?;
    bench.finish(MSIX)?;
    Ok(format!(
        "Identify: model \"{model}\", serial \"{serial}\", 1 MSI-X"
    ))
}

/// Section 5.15: opcode 06h, CNS 01h, one page of data.
fn identify_controller(data: u64) -> [u8; 64] {
    const OPCODE: u8 = 0x06;
    const CNS_CONTROLLER: u8 = 0x01;
    let mut command = [0; 64];
    command[0] = OPCODE;
    command[2] = 17;
    command[24..32].copy_from_slice(&data.to_le_bytes());
    command[40] = CNS_CONTROLLER;
    command
}
