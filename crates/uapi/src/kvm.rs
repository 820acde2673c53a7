//! KVM_SET_DEVICE_ATTR on the VFIO device of a virtual machine. Linux
//! `virt/kvm/vfio.c` and, for the structure, `virt/kvm/kvm_main.c`,
//! `kvm_device_ioctl_attr`.

use iogate_host::{Coherency, Error, FileId, Host};
use tracing::Level;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use crate::trace::Told;
use crate::{Answer, Client, Errno, Named, calls};

/// KVM_DEV_VFIO_FILE, also called KVM_DEV_VFIO_GROUP.
const FILE: u32 = 1;
/// KVM_DEV_VFIO_FILE_ADD.
const ADD: u64 = 1;
/// KVM_DEV_VFIO_FILE_DEL.
const DEL: u64 = 2;

/// `struct kvm_device_attr`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct DeviceAttr {
    flags: u32,
    group: u32,
    attr: u64,
    addr: u64,
}

/// KVM_SET_DEVICE_ATTR with the structure at `attribute`, on the KVM VFIO
/// device whose open file is numbered `machine`; end it with
/// [`Host::kvm_close`]. `None` if it is about a descriptor that is none of
/// ours: the kernel answers. EFAULT; EBADF; ENXIO for an unknown attribute;
/// EINVAL for a file of ours that is neither group nor device; EEXIST, ENOENT.
pub fn kvm_device_attr(
    host: &Host,
    machine: u64,
    attribute: u64,
    client: &dyn Client,
) -> Result<Option<Answer>, Errno> {
    let mut attr = DeviceAttr::new_zeroed();
    client.read(attribute, attr.as_mut_bytes())?;
    if attr.group != FILE || !matches!(attr.attr, ADD | DEL) {
        return Err(Errno::ENXIO);
    }
    let mut fd = [0; 4];
    client.read(attr.addr, &mut fd)?;
    let fd = i32::from_ne_bytes(fd);
    let Named::Ours(file) = client.named(fd)? else {
        return Ok(None);
    };
    let refused = host
        .interposer()
        .and_then(|interposer| interposer.call(calls::KVM_VFIO_FILE, None, client.actor()));
    if let Some(errno) = refused {
        return Err(Errno(errno));
    }
    let before = host.kvm_coherency(machine);
    let outcome = change(host, machine, attr.attr, file);
    let after = *outcome.as_ref().unwrap_or(&before);
    let result = outcome.map(|_| Answer::value(0)).map_err(Errno::from);
    tracing::event!(
        name: "ioctl_kvm_vfio_file",
        target: "iogate",
        Level::INFO,
        machine,
        attribute = if attr.attr == ADD { "add" } else { "del" },
        fd,
        file = file.0,
        result = %Told(&result),
    );
    if before != after {
        tracing::event!(
            name: "kvm_coherency",
            target: "iogate",
            Level::INFO,
            machine,
            noncoherent = after == Coherency::Noncoherent,
        );
    }
    result.map(Some)
}

fn change(host: &Host, machine: u64, attr: u64, file: FileId) -> Result<Coherency, Error> {
    match attr {
        ADD => host.kvm_add(machine, file),
        _ => host.kvm_remove(machine, file),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iommufd::same_layout;

    #[test]
    fn the_structure_is_laid_out_as_the_kernels() {
        same_layout!(DeviceAttr, kvm_bindings::kvm_device_attr, {
            flags: flags, group: group, attr: attr, addr: addr,
        });
        assert_eq!(FILE, kvm_bindings::KVM_DEV_VFIO_FILE);
        assert_eq!(ADD, kvm_bindings::KVM_DEV_VFIO_FILE_ADD.into());
        assert_eq!(DEL, kvm_bindings::KVM_DEV_VFIO_FILE_DEL.into());
    }
}
