//! The ACPI table that tells the guest of its units.

use iogate_vtd::acpi::{Dmar, Drhd, Scope, TableError};

use super::plan::Plan;

/// Bits of an address of x86's memory that DMA may have.
const HOST_WIDTH: u8 = 48;

/// The table of `plan`, whose units have their registers at `bases`.
///
/// Interrupt remapping stays unsaid: QEMU's interrupt controllers would not ask.
/// Scopes name each function: what QEMU itself has is behind no unit of ours.
pub(crate) fn table(plan: &Plan, bases: &[u64]) -> Result<Vec<u8>, TableError> {
    let widths = plan.units.iter().map(|unit| unit.width);
    let width = widths.chain([HOST_WIDTH]).max().unwrap_or(HOST_WIDTH);
    let mut table = Dmar::new(width);
    for (index, base) in bases.iter().enumerate() {
        let behind = plan.devices.iter();
        let behind = behind.filter(|device| device.unit == Some(index));
        let unit = Drhd::new(*base);
        let unit = behind.fold(unit, |unit, device| unit.scope(Scope::endpoint(device.at)));
        table = table.unit(unit);
    }
    table.to_bytes()
}
