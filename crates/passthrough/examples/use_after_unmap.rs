//! A driver's bug that hardware often hides: the device is still pointed at a
//! buffer that was unmapped. Run it where it is caught:
//!
//! ```text
//! cargo build --release --example use_after_unmap -p iogate-passthrough
//! cargo run --release -- run -- target/release/examples/use_after_unmap
//! ```

use std::io;
use std::time::Duration;

use iogate_dma::{Iova, Rights};
use iogate_passthrough::container::TYPE1V2;
use iogate_passthrough::device::CONFIG_REGION;
use iogate_passthrough::{Buffer, Container, Group};

/// The first edu of a session, and the group that it is in by default.
const DEVICE: &str = "0000:01:00.0";
const GROUP: u32 = 2;

fn main() -> io::Result<()> {
    let container = Container::open()?;
    let group = Group::open(GROUP)?;
    group.set_container(&container)?;
    container.set_iommu(TYPE1V2)?;
    let device = group.device(DEVICE)?;
    let (config, bar0) = (device.region(CONFIG_REGION)?, device.region(0)?);
    // Memory space and bus mastering.
    device.write(&config, 4, &[0b110])?;

    let (buffer, iova) = (Buffer::new(1 << 20)?, Iova(0x20_0000));
    container.map(iova, &buffer, Rights::READ_WRITE)?;
    container.unmap(iova, 1 << 20)?;

    // edu: from its buffer to memory, 4096 bytes.
    for (register, value) in [
        (0x80, 0x4_0000),
        (0x88, iova.0),
        (0x90, 4096),
        (0x98, 0b11_u64),
    ] {
        device.write(&bar0, register, &value.to_le_bytes())?;
    }
    std::thread::sleep(Duration::from_millis(50));
    println!("the driver noticed nothing");
    Ok(())
}
