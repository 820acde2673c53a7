//! Writes the ACPI table of a machine with two VT-d units to a file, as QEMU's `-acpitable file=` takes it: a unit for a
//! network card behind a bridge, and one that has everything else, the I/O APIC and the timer.
//!
//!     cargo run -p iogate-vtd --example dmar -- dmar.bin

use std::error::Error;

use iogate_vtd::acpi::{Andd, Atsr, Dmar, Drhd, Path, Rhsa, Rmrr, Satc, Scope};

fn main() -> Result<(), Box<dyn Error>> {
    let file = std::env::args().nth(1).ok_or("usage: dmar FILE")?;
    // Through the root port 00:1c.4 to the card's function 0.
    let card = Path::new(0, 0x1c, 4).through(0, 0);
    let table = Dmar::new(48)
        .interrupt_remapping()
        .x2apic_opt_out()
        .unit(
            Drhd::new(0xfed9_0000)
                .include_all()
                .scope(Scope::io_apic(2, Path::new(0xff, 0, 0)))
                .scope(Scope::hpet(0, Path::new(0, 0x0f, 0)))
                .scope(Scope::namespace(1, Path::new(0, 0x15, 2))),
        )
        .unit(
            Drhd::new(0xfed9_1000)
                .scope(Scope::endpoint(card.clone()))
                .scope(Scope::bridge(Path::new(0, 0x1d, 0))),
        )
        .reserved(Rmrr::new(0x7b80_0000, 0x7fff_ffff).scope(Scope::endpoint(card)))
        .root_ports(Atsr::new(0).scope(Scope::bridge(Path::new(0, 0x1c, 4))))
        .affinity(Rhsa {
            base: 0xfed9_1000,
            domain: 3,
        })
        .device(Andd {
            number: 1,
            name: "\\_SB.I2C0".to_owned(),
        })
        .integrated(
            Satc::new(0)
                .required()
                .scope(Scope::endpoint(Path::new(0, 2, 0))),
        );
    std::fs::write(file, table.to_bytes()?)?;
    Ok(())
}
