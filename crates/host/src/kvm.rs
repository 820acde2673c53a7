//! The link between virtual machines and assigned devices: whether a machine
//! must honour the guest's idea of cache attributes. Linux `virt/kvm/vfio.c`.

use std::collections::{BTreeMap, BTreeSet};

use crate::state::State;
use crate::{Error, ErrorKind, FileId, FileKind, Host};

/// Whether DMA into a virtual machine always snoops the caches.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Coherency {
    /// It does: the guest's flushes mean nothing.
    #[default]
    Coherent,
    /// A device can reach memory past the caches: the machine registered
    /// non-coherent DMA.
    Noncoherent,
}

/// One virtual machine's VFIO device: the files that were added to it.
#[derive(Default, Debug)]
struct Machine {
    files: BTreeSet<FileId>,
    coherency: Coherency,
}

/// The virtual machines, by the number of their VFIO device's file.
#[derive(Default, Debug)]
pub(crate) struct Machines(BTreeMap<u64, Machine>);

impl Host {
    /// KVM_DEV_VFIO_FILE_ADD: says what the machine is now. EINVAL if `file`
    /// is neither a group nor a device; EEXIST if it was added. Linux
    /// `kvm_vfio_file_add`.
    pub fn kvm_add(&self, machine: u64, file: FileId) -> Result<Coherency, Error> {
        let mut state = self.lock();
        if !matches!(
            self.kind(file),
            Some(FileKind::Group(_) | FileKind::Device(_))
        ) {
            return Err(Error::invalid("the file is neither a group nor a device"));
        }
        let entry = state.machines.0.entry(machine).or_default();
        if !entry.files.insert(file) {
            return Err(Error::new(
                ErrorKind::Exists,
                "the file was added to the virtual machine already",
            ));
        }
        Ok(self.retest(&mut state, machine))
    }

    /// KVM_DEV_VFIO_FILE_DEL: says what the machine is now. ENOENT if the file
    /// was not added. Linux `kvm_vfio_file_del`.
    pub fn kvm_remove(&self, machine: u64, file: FileId) -> Result<Coherency, Error> {
        let mut state = self.lock();
        let entry = state.machines.0.get_mut(&machine);
        if !entry.is_some_and(|entry| entry.files.remove(&file)) {
            return Err(Error::new(
                ErrorKind::NotFound,
                "the file was not added to the virtual machine",
            ));
        }
        Ok(self.retest(&mut state, machine))
    }

    /// The machine's VFIO device is gone. Linux `kvm_vfio_release`.
    pub fn kvm_close(&self, machine: u64) {
        self.lock().machines.0.remove(&machine);
    }

    /// What the machine is at present.
    pub fn kvm_coherency(&self, machine: u64) -> Coherency {
        let state = self.lock();
        let entry = state.machines.0.get(&machine);
        entry.map_or(Coherency::Coherent, |entry| entry.coherency)
    }

    /// A file is closed: no machine knows it any more.
    pub(crate) fn kvm_forget(&self, state: &mut State, file: FileId) {
        let mut machines = Vec::new();
        for (number, machine) in &mut state.machines.0 {
            if machine.files.remove(&file) {
                machines.push(*number);
            }
        }
        for machine in machines {
            self.retest(state, machine);
        }
    }

    /// Asks all files of the machine again. Linux `kvm_vfio_update_coherency`.
    fn retest(&self, state: &mut State, machine: u64) -> Coherency {
        let Some(entry) = state.machines.0.get(&machine) else {
            return Coherency::Coherent;
        };
        let mut files = entry.files.iter();
        let coherency = match files.all(|file| self.is_coherent(state, *file)) {
            true => Coherency::Coherent,
            false => Coherency::Noncoherent,
        };
        let is_idle = entry.files.is_empty();
        if is_idle {
            state.machines.0.remove(&machine);
        } else if let Some(entry) = state.machines.0.get_mut(&machine) {
            entry.coherency = coherency;
        }
        coherency
    }

    /// Whether all devices of the file have their DMA forced to snoop. Linux
    /// `vfio_file_enforced_coherent`.
    fn is_coherent(&self, state: &State, file: FileId) -> bool {
        let of = |index: usize| {
            let unit = self.device(index).ok().and_then(|device| device.unit());
            unit.is_some_and(|unit| unit.coherent)
        };
        match self.kind(file) {
            Some(FileKind::Device(index)) => of(index),
            Some(FileKind::Group(number)) => {
                let members = state.groups.get(&number).map(|group| &group.members);
                members.into_iter().flatten().all(|index| of(*index))
            }
            _ => true,
        }
    }
}
