//! The virtual functions of a machine, made known to the object model.

use std::io::Read;

use iogate_dma::Source;
use iogate_host::Host;
use iogate_machine::Machine;

use super::Refusal;

/// Tells the host which of its devices are virtual functions, and whose.
pub(super) fn add(machine: &Machine, host: &Host) -> Result<(), Refusal> {
    for (index, entry, _) in machine.devices() {
        let functions: Vec<usize> = machine
            .virtual_functions(index)
            .filter_map(|(_, function)| device_at(host, function.source()))
            .collect();
        let Some(physical) = device_at(host, entry.source()).filter(|_| !functions.is_empty())
        else {
            continue;
        };
        let added = host.add_virtual_functions(physical, functions, random()?);
        added.map_err(|error| Refusal(error.reason.to_owned()))?;
    }
    Ok(())
}

/// The device of the host at an address.
pub(super) fn device_at(host: &Host, source: Source) -> Option<usize> {
    let mut devices = host.config().devices.iter();
    devices.position(|device| device.source == source)
}

/// A token that nobody knows.
fn random() -> Result<[u8; 16], Refusal> {
    let mut token = [0; 16];
    let read = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut token));
    read.map_err(|error| Refusal(format!("cannot read /dev/urandom: {error}")))?;
    Ok(token)
}
