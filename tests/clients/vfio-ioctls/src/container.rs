//! Ways of opening that the crate has no name for: the program opens container, group and device by its own calls and
//! hands the device to the crate; memory is mapped by a container's calls, on whatever takes them.

use std::fs::{File, OpenOptions};
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex};

use iommufd_ioctls::IommuFd;
use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE, VFIO_TYPE, VFIO_TYPE1_IOMMU,
    VFIO_TYPE1v2_IOMMU, vfio_iommu_type1_dma_map, vfio_iommu_type1_dma_unmap,
};
use vfio_ioctls::{VfioDevice, VfioError, VfioIommufd, VfioOps};
use vmm_sys_util::errno::Error as SysError;
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ptr, ioctl_with_ref, ioctl_with_val};
use vmm_sys_util::ioctl_io_nr;

use crate::Outcome;

ioctl_io_nr!(SET_IOMMU, VFIO_TYPE.into(), VFIO_BASE + 2);
ioctl_io_nr!(SET_CONTAINER, VFIO_TYPE.into(), VFIO_BASE + 4);
ioctl_io_nr!(GET_DEVICE_FD, VFIO_TYPE.into(), VFIO_BASE + 6);
ioctl_io_nr!(MAP_DMA, VFIO_TYPE.into(), VFIO_BASE + 13);
ioctl_io_nr!(UNMAP_DMA, VFIO_TYPE.into(), VFIO_BASE + 14);
ioctl_io_nr!(VFIO_IOAS, VFIO_TYPE.into(), 0x88);

/// IOMMU_VFIO_IOAS with the operation IOMMU_VFIO_IOAS_SET.
#[repr(C)]
struct VfioIoas {
    size: u32,
    ioas: u32,
    operation: u16,
    reserved: u16,
}

/// An opened device.
pub(crate) struct Opened {
    device: ManuallyDrop<VfioDevice>,
    /// Its descriptor, if it was opened by a group without the crate, which would detach it from an iommufd.
    number: Option<RawFd>,
}

impl From<VfioDevice> for Opened {
    fn from(device: VfioDevice) -> Self {
        Self {
            device: ManuallyDrop::new(device),
            number: None,
        }
    }
}

impl Deref for Opened {
    type Target = VfioDevice;

    fn deref(&self) -> &VfioDevice {
        &self.device
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        match self.number {
            // SAFETY: the device, whose descriptor this is, is never used again and never dropped.
            Some(number) => drop(unsafe { OwnedFd::from_raw_fd(number) }),
            // SAFETY: it is never used again.
            None => unsafe { ManuallyDrop::drop(&mut self.device) },
        }
    }
}

/// What takes a container's calls.
pub(crate) enum Container {
    /// A container or an iommufd that groups are put into.
    Groups {
        container: File,
        iommu: u32,
        groups: Mutex<Vec<File>>,
        /// The crate asks for one with every device that is opened already; nothing is in it.
        beside: Arc<VfioIommufd>,
    },
    /// An iommufd that devices are bound to.
    Devices(Arc<VfioIommufd>),
}

impl Container {
    /// One of the modes `type1`, `compat-group` and `compat-cdev`.
    pub(crate) fn open(mode: &str) -> Outcome<Self> {
        let beside = || -> Outcome<_> {
            let iommufd = Arc::new(IommuFd::new()?);
            Ok(Arc::new(VfioIommufd::new(iommufd, None, None)?))
        };
        let groups = |path: &str, iommu: u32| -> Outcome<_> {
            Ok(Self::Groups {
                container: OpenOptions::new().read(true).write(true).open(path)?,
                iommu,
                groups: Mutex::default(),
                beside: beside()?,
            })
        };
        match mode {
            "type1" => groups("/dev/vfio/vfio", VFIO_TYPE1_IOMMU),
            "compat-group" => groups("/dev/iommu", VFIO_TYPE1v2_IOMMU),
            "compat-cdev" => Ok(Self::Devices(beside()?)),
            _ => Err("usage: iogate-client-vfio-ioctls \
                      type1|type1v2|compat-group|compat-cdev|iommufd"
                .into()),
        }
    }

    /// Opens a function in it.
    pub(crate) fn device(&self, function: &Path) -> Outcome<Opened> {
        match self {
            Self::Groups {
                container,
                iommu,
                groups,
                beside,
            } => {
                let number = function.join("iommu_group").read_link()?;
                let number = number.file_name().unwrap_or_default();
                let path = Path::new("/dev/vfio").join(number);
                let group = OpenOptions::new().read(true).write(true).open(path)?;
                // SAFETY: reads one number, which lives through the call.
                done(unsafe { ioctl_with_ref(&group, SET_CONTAINER(), &container.as_raw_fd()) })?;
                let mut groups = groups.lock().map_err(|_| "a thread has panicked")?;
                if groups.is_empty() {
                    // SAFETY: takes a number.
                    done(unsafe { ioctl_with_val(container, SET_IOMMU(), (*iommu).into()) })?;
                }
                let mut name = function.file_name().unwrap_or_default().as_bytes().to_vec();
                name.push(0);
                // SAFETY: reads a string up to its 0, which is there.
                let device =
                    done(unsafe { ioctl_with_ptr(&group, GET_DEVICE_FD(), name.as_ptr()) })?;
                groups.push(group);
                let number = device;
                // SAFETY: the descriptor is new and nobody else's.
                let device = unsafe { File::from_raw_fd(device) };
                let device = VfioDevice::new_from_bound_fd(device, Arc::clone(beside), false)?;
                Ok(Opened {
                    device: ManuallyDrop::new(device),
                    number: Some(number),
                })
            }
            Self::Devices(iommufd) => {
                let space: Arc<dyn VfioOps> = Arc::<VfioIommufd>::clone(iommufd);
                let device = VfioDevice::new(function, space, true)?;
                let request = VfioIoas {
                    size: 12,
                    ioas: iommufd.ioas().id(),
                    operation: 1,
                    reserved: 0,
                };
                let iommufd = iommufd.iommufd().as_ref();
                // SAFETY: reads the structure, whose size it says.
                done(unsafe { ioctl_with_ref(iommufd, VFIO_IOAS(), &request) })?;
                // SAFETY: takes a number.
                done(unsafe { ioctl_with_val(iommufd, SET_IOMMU(), VFIO_TYPE1v2_IOMMU.into()) })?;
                Ok(device.into())
            }
        }
    }

    /// Makes a call of a container with its structure.
    fn call<T>(&self, number: std::ffi::c_ulong, request: &mut T) -> Result<(), SysError> {
        let result = match self {
            // SAFETY: each caller passes the structure that the call reads and writes, with its size in it.
            Self::Groups { container, .. } => unsafe {
                ioctl_with_mut_ref(container, number, request)
            },
            // SAFETY: as above.
            Self::Devices(iommufd) => unsafe {
                ioctl_with_mut_ref(iommufd.iommufd().as_ref(), number, request)
            },
        };
        match result < 0 {
            true => Err(SysError::last()),
            false => Ok(()),
        }
    }
}

impl VfioOps for Container {
    unsafe fn vfio_dma_map(
        &self,
        iova: u64,
        size: usize,
        memory: *mut u8,
    ) -> Result<(), VfioError> {
        let mut request = vfio_iommu_type1_dma_map {
            argsz: 32,
            flags: VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
            vaddr: memory.addr() as u64,
            iova,
            size: size as u64,
        };
        self.call(MAP_DMA(), &mut request)
            .map_err(VfioError::IommuDmaMap)
    }

    fn vfio_dma_unmap(&self, iova: u64, size: usize) -> Result<(), VfioError> {
        let mut request = vfio_iommu_type1_dma_unmap {
            argsz: 24,
            iova,
            size: size as u64,
            ..Default::default()
        };
        self.call(UNMAP_DMA(), &mut request)
            .map_err(VfioError::IommuDmaUnmap)?;
        match request.size == size as u64 {
            true => Ok(()),
            false => Err(VfioError::InvalidDmaUnmapSize),
        }
    }
}

fn done(result: i32) -> std::io::Result<i32> {
    match result < 0 {
        true => Err(std::io::Error::last_os_error()),
        false => Ok(result),
    }
}
