//! The names of calls before they are run, as traces have them.

use iogate_host::{Actor, FileKind, Host};

use crate::{After, Answer, Client, Errno};

/// The kinds of file whose numbers are told apart.
#[derive(Clone, Copy, PartialEq, Eq)]
enum On {
    Container,
    Group,
    Device,
    Migration,
    Iommufd,
}

/// Kind of file, number in `_IO(';', nr)`, name. include/uapi/linux/vfio.h and
/// iommufd.h.
const CALLS: &[(On, u32, &str)] = &[
    (On::Container, 0x64, "ioctl_get_api_version"),
    (On::Container, 0x65, "ioctl_check_extension"),
    (On::Container, 0x66, "ioctl_set_iommu"),
    (On::Container, 0x70, "ioctl_get_info"),
    (On::Container, 0x71, "ioctl_map_dma"),
    (On::Container, 0x72, "ioctl_unmap_dma"),
    (On::Container, 0x75, "ioctl_dirty_pages"),
    (On::Group, 0x67, "ioctl_group_get_status"),
    (On::Group, 0x68, "ioctl_group_set_container"),
    (On::Group, 0x69, "ioctl_group_unset_container"),
    (On::Group, 0x6a, "ioctl_group_get_device_fd"),
    (On::Device, 0x6b, "ioctl_device_get_info"),
    (On::Device, 0x6c, "ioctl_device_get_region_info"),
    (On::Device, 0x6d, "ioctl_device_get_irq_info"),
    (On::Device, 0x6e, "ioctl_device_set_irqs"),
    (On::Device, 0x6f, "ioctl_device_reset"),
    (On::Device, 0x70, "ioctl_device_get_pci_hot_reset_info"),
    (On::Device, 0x71, "ioctl_device_pci_hot_reset"),
    (On::Device, 0x74, "ioctl_device_ioeventfd"),
    (On::Device, 0x75, "ioctl_device_feature"),
    (On::Device, 0x76, "ioctl_device_bind_iommufd"),
    (On::Device, 0x77, "ioctl_device_attach_iommufd_pt"),
    (On::Device, 0x78, "ioctl_device_detach_iommufd_pt"),
    (On::Migration, 0x79, "ioctl_mig_get_precopy_info"),
    (On::Iommufd, 0x80, "ioctl_destroy"),
    (On::Iommufd, 0x81, "ioctl_ioas_alloc"),
    (On::Iommufd, 0x82, "ioctl_ioas_allow_iovas"),
    (On::Iommufd, 0x83, "ioctl_ioas_copy"),
    (On::Iommufd, 0x84, "ioctl_ioas_iova_ranges"),
    (On::Iommufd, 0x85, "ioctl_ioas_map"),
    (On::Iommufd, 0x86, "ioctl_ioas_unmap"),
    (On::Iommufd, 0x87, "ioctl_option"),
    (On::Iommufd, 0x88, "ioctl_vfio_ioas"),
    (On::Iommufd, 0x89, "ioctl_hwpt_alloc"),
    (On::Iommufd, 0x8a, "ioctl_get_hw_info"),
    (On::Iommufd, 0x8b, "ioctl_hwpt_set_dirty_tracking"),
    (On::Iommufd, 0x8c, "ioctl_hwpt_get_dirty_bitmap"),
    (On::Iommufd, 0x8d, "ioctl_hwpt_invalidate"),
    (On::Iommufd, 0x8e, "ioctl_fault_queue_alloc"),
    (On::Iommufd, 0x8f, "ioctl_ioas_map_file"),
    (On::Iommufd, 0x90, "ioctl_viommu_alloc"),
    (On::Iommufd, 0x91, "ioctl_vdevice_alloc"),
    (On::Iommufd, 0x92, "ioctl_ioas_change_process"),
    (On::Iommufd, 0x93, "ioctl_veventq_alloc"),
    (On::Iommufd, 0x94, "ioctl_hw_queue_alloc"),
    (On::Iommufd, 0xa0, "ioctl_test"),
];

/// KVM_SET_DEVICE_ATTR about a file of ours.
pub(crate) const KVM_VFIO_FILE: &str = "ioctl_kvm_vfio_file";

/// The names of all calls that an [`Interpose`](iogate_host::Interpose) is
/// asked about.
pub fn names() -> impl Iterator<Item = &'static str> {
    let ioctls = CALLS.iter().map(|(_, _, name)| *name);
    ioctls.chain([KVM_VFIO_FILE, "region_read", "region_write"])
}

/// The name of an ioctl on a file of this kind; `None` if it knows no such.
/// An iommufd answers a container's calls too.
pub(crate) fn name(kind: FileKind, command: u32) -> Option<&'static str> {
    let number = command.checked_sub(0x3b00)?;
    let on = match kind {
        FileKind::Container => On::Container,
        FileKind::Group(_) => On::Group,
        FileKind::Device(_) => On::Device,
        FileKind::Migration { .. } => On::Migration,
        FileKind::Iommufd if number < 0x80 => On::Container,
        FileKind::Iommufd => On::Iommufd,
        FileKind::Access | FileKind::Buffer | FileKind::FaultQueue | FileKind::Revoked => {
            return None;
        }
    };
    let mut calls = CALLS.iter();
    calls.find_map(|(kind, known, name)| (*kind == on && *known == number).then_some(*name))
}

/// What a call is to come to instead of being run. It is an answer, not an
/// error: nothing may make another attempt of it.
pub(crate) fn interposed(
    host: &Host,
    kind: FileKind,
    name: &'static str,
    client: &dyn Client,
) -> Option<Answer> {
    // Asking who calls is not for nothing.
    host.interposer()?;
    let errno = interposed_by(host, kind, name, client.actor())?;
    Some(Answer::failed(errno, After::default()))
}

/// The errno that a call or an access by a thread is to come to.
pub(crate) fn interposed_by(
    host: &Host,
    kind: FileKind,
    name: &'static str,
    by: Actor,
) -> Option<Errno> {
    let interposer = host.interposer()?;
    let source = match kind {
        FileKind::Device(device) => host.device(device).ok().map(|device| device.source),
        _ => None,
    };
    interposer.call(name, source, by).map(Errno)
}
