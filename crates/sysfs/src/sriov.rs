//! What sysfs shows of virtual functions. Linux drivers/pci/iov.c,
//! `sriov_pf_dev_attrs` and `pci_iov_sysfs_link`;
//! Documentation/ABI/testing/sysfs-bus-pci.
use crate::facts::{FunctionFacts, Presence, Resource};
use crate::tree::{Tree, function_path};
use iogate_machine::{FunctionEntry, Machine};

/// A file by which software configures virtual functions.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum SrIovFile {
    /// `sriov_numvfs`.
    NumVfs,
    /// `sriov_drivers_autoprobe`.
    DriversAutoprobe,
}

/// What a physical function shows besides its configuration space.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SrIovFacts {
    /// Virtual functions that are enabled.
    pub enabled: u16,
    /// Whether they are bound to a driver when they come.
    pub autoprobe: bool,
    /// Their BARs, each for all of them.
    pub resources: [Resource; 6],
}

/// The files of a machine whose writes do something, each with its path and
/// the index in [`Machine::functions`] of its physical function.
pub fn sr_iov_files(machine: &Machine) -> Vec<(String, usize, SrIovFile)> {
    let mut files = Vec::new();
    for (index, ..) in machine.devices() {
        if machine.virtual_functions(index).next().is_some() {
            let path = function_path(machine, index);
            for (name, file) in [
                (NUM_VFS, SrIovFile::NumVfs),
                (AUTOPROBE, SrIovFile::DriversAutoprobe),
            ] {
                files.push((format!("{path}/{name}"), index, file));
            }
        }
    }
    files
}

const NUM_VFS: &str = "sriov_numvfs";
const AUTOPROBE: &str = "sriov_drivers_autoprobe";

/// The files of a physical function, with what its capability says.
pub(crate) fn physical(tree: &mut Tree, path: &str, facts: &FunctionFacts) {
    let (Some(shown), Some(at)) = (&facts.sr_iov, facts.extended(0x0010)) else {
        return;
    };
    let register = |offset: usize| facts.word(at.saturating_add(offset));
    let file = |name: &str| format!("{path}/{name}");
    for (name, value) in [
        ("sriov_totalvfs", register(0x0e)),
        ("sriov_offset", register(0x14)),
        ("sriov_stride", register(0x16)),
        ("sriov_vf_total_msix", 0),
    ] {
        tree.file(file(name), format!("{value}\n"));
    }
    tree.file(file("sriov_vf_device"), format!("{:x}\n", register(0x1a)));
    for (name, value) in [
        (NUM_VFS, shown.enabled),
        (AUTOPROBE, u16::from(shown.autoprobe)),
    ] {
        tree.file_with_mode(file(name), format!("{value}\n"), 0o644);
    }
}

/// The links between a virtual function and its owner.
pub(crate) fn virtual_function(
    tree: &mut Tree,
    machine: &Machine,
    path: &str,
    entry: &FunctionEntry,
    presence: Presence,
) {
    let Some(of) = entry.placed.virtual_of else {
        return;
    };
    tree.control(format!("{path}/sriov_vf_msix_count"));
    if presence != Presence::Leaving {
        let owner = function_path(machine, of.physical);
        tree.link(format!("{owner}/virtfn{}", of.number), path);
        tree.link(format!("{path}/physfn"), &owner);
    }
}
