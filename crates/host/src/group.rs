//! Isolation groups: who may do DMA with their devices, and who has them open.
//! Linux `drivers/vfio/group.c` and, for ownership, `drivers/iommu/iommu.c`.

use crate::{Error, ErrorKind, FileId};

/// Who does DMA with the devices of a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Owner {
    /// Nobody: free to be claimed.
    #[default]
    Nobody,
    /// A driver of the host's own, bound to a member.
    HostDriver,
    /// A container, by way of the group's file.
    Container(FileId),
    /// An iommufd, by way of bound devices.
    Iommufd(FileId),
}

/// One isolation group.
#[derive(Debug)]
pub struct Group {
    /// The N of `/dev/vfio/N`.
    pub number: u32,
    /// Indices of its devices.
    pub members: Vec<usize>,
    owner: Owner,
    claims: u32,
    /// The group's one open file. It stays open for as long as a device file
    /// got by it does.
    pub opener: Option<FileId>,
    /// Whether the last descriptor of [`opener`](Self::opener) went while
    /// device files still held it.
    pub orphaned: bool,
    /// The container that it was set to, if any.
    pub container: Option<FileId>,
    /// Open device files got by way of the group.
    pub device_files: u32,
    /// Devices bound by way of their own node: while there are any, the group
    /// cannot be opened.
    pub bound_devices: u32,
}

impl Group {
    pub(crate) fn new(number: u32, viable: bool) -> Self {
        Self {
            number,
            members: Vec::new(),
            owner: if viable {
                Owner::Nobody
            } else {
                Owner::HostDriver
            },
            claims: 0,
            opener: None,
            orphaned: false,
            container: None,
            device_files: 0,
            bound_devices: 0,
        }
    }

    /// Who does DMA with the group's devices.
    pub fn owner(&self) -> Owner {
        self.owner
    }

    /// Claims the group. An iommufd may claim it several times, once a device;
    /// anyone else once. EPERM if it is somebody else's. Linux
    /// `drivers/iommu/iommu.c`, `iommu_group_claim_dma_owner` and
    /// `iommu_device_claim_dma_owner`.
    pub fn claim(&mut self, owner: Owner) -> Result<(), Error> {
        let again = self.owner == owner && matches!(owner, Owner::Iommufd(_));
        if self.owner != Owner::Nobody && !again {
            return Err(Error::new(
                ErrorKind::NotPermitted,
                "somebody else does DMA with the group's devices",
            ));
        }
        self.owner = owner;
        self.claims = self.claims.saturating_add(1);
        Ok(())
    }

    /// Gives one claim back; the last leaves the group to nobody.
    pub fn release(&mut self) {
        self.claims = self.claims.saturating_sub(1);
        if self.claims == 0 && self.owner != Owner::HostDriver {
            self.owner = Owner::Nobody;
        }
    }

    /// Whether nobody but a VFIO user can do DMA with its devices, as
    /// VFIO_GROUP_FLAGS_VIABLE says. Linux `drivers/vfio/group.c`,
    /// `vfio_group_ioctl_get_status`.
    pub fn is_viable(&self) -> bool {
        self.container.is_some() || self.owner == Owner::Nobody
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_iommufd_claims_once_a_device_and_the_last_release_frees_the_group() {
        let mut group = Group::new(1, true);
        let (ours, theirs) = (Owner::Iommufd(FileId(1)), Owner::Iommufd(FileId(2)));
        group.claim(ours).unwrap();
        group.claim(ours).unwrap();
        assert_eq!(
            group.claim(theirs).unwrap_err().kind,
            ErrorKind::NotPermitted
        );
        group.release();
        assert_eq!(group.owner(), ours);
        group.release();
        assert_eq!(group.owner(), Owner::Nobody);
        group.claim(theirs).unwrap();
    }

    #[test]
    fn a_container_claims_a_group_once() {
        let mut group = Group::new(1, true);
        let owner = Owner::Container(FileId(1));
        group.claim(owner).unwrap();
        assert!(group.claim(owner).is_err());
        group.release();
        assert!(group.is_viable());
    }

    #[test]
    fn a_group_of_the_hosts_own_cannot_be_claimed() {
        let mut group = Group::new(1, false);
        assert!(group.claim(Owner::Container(FileId(1))).is_err());
        assert!(!group.is_viable());
    }
}
