//! Mock devices: each alone in its group, behind a unit with pages of 2 KiB and
//! a window of addresses that starts at 16 MiB. Linux
//! `drivers/iommu/iommufd/selftest.c`, `iommufd_test_mock_domain`.

use std::sync::Arc;

use iogate_dma::Iova;
use iogate_host::iommufd::{
    Attached, Describe, Failure, Features, Nodeless, Outcome, Unit, UnitData,
};
use iogate_host::{Error, Iommu};

use crate::{Call, UNSUPPORTED, leaves};

/// Bytes of the smallest page. MOCK_PAGE_SIZE.
pub(crate) const PAGE: u64 = 2048;
/// MOCK_APERTURE_START.
const FIRST: Iova = Iova(1 << 24);
/// MOCK_APERTURE_LAST.
const LAST: Iova = Iova((1 << 31) - 1);
/// MOCK_PASID_WIDTH.
const PASID_BITS: u8 = 20;
/// IOMMU_HW_INFO_TYPE_SELFTEST, and what the one register of it holds.
const INFO_KIND: u32 = 0xfeed_beef;
const INFO_REGISTER: u32 = 0xdead_beef;
/// IOMMU_HWPT_DATA_SELFTEST.
const TABLE_KIND: u32 = 0xdead;
/// MOCK_IOMMUPT_DEFAULT and MOCK_IOMMUPT_HUGE.
const USUAL: u32 = 0;
const HUGE: u32 = 1;
/// MOCK_HUGE_PAGE_SIZE, and that of the processor's pages, in bytes.
const HUGE_PAGE: u64 = 1 << 20;
const PROCESSOR_PAGE: u64 = 4096;
/// What each word of a device's cache holds until it is invalidated, and how
/// many there are.
const CACHE: u32 = 0x00ba_ddad;
const CACHE_WORDS: u32 = 4;

/// MOCK_FLAGS_DEVICE_*.
const NO_DIRTY: u32 = 1;
const HAS_PASID: u32 = 4;

/// The unit of all mock devices.
pub(crate) fn iommu() -> Iommu {
    Iommu {
        index: usize::MAX,
        aperture_last: Iova(u64::MAX),
        page_sizes: !PAGE.wrapping_sub(1),
        reserved: Vec::new(),
        coherent: true,
        tracks_dirty: true,
        pasid_bits: 0,
    }
}

fn unit(iommu: &Arc<Iommu>, flags: u32) -> Unit {
    let mut bytes = vec![0; 4];
    bytes.extend(INFO_REGISTER.to_ne_bytes());
    Unit {
        iommu: Arc::clone(iommu),
        aperture_first: Iova(0),
        features: Features {
            tracks_dirty: flags & NO_DIRTY == 0,
            nests: true,
            takes_pasids: true,
            data_kind: TABLE_KIND,
            pasid_bits: if flags & HAS_PASID != 0 {
                PASID_BITS
            } else {
                0
            },
            asks_for_pages: true,
        },
        data: UnitData {
            kind: INFO_KIND,
            bytes,
        },
        dirty_page: None,
        describe: Some(Describe {
            length: (4, 8),
            table,
        }),
    }
}

/// What a page table is like: usually it reaches a part of the addresses by
/// pages of every size; the other kind reaches all, by huge pages that are
/// written as a whole. `mock_domain_alloc_pgtable`.
fn table(unit: &Unit, description: &[u8]) -> Result<Unit, Error> {
    let kind = description.get(4..).and_then(|rest| rest.first_chunk());
    let iommu = Iommu::clone(&unit.iommu);
    match kind.copied().map_or(USUAL, u32::from_ne_bytes) {
        USUAL => Ok(Unit {
            iommu: Arc::new(Iommu {
                aperture_last: LAST,
                ..iommu
            }),
            aperture_first: FIRST,
            ..unit.clone()
        }),
        HUGE => Ok(Unit {
            iommu: Arc::new(Iommu {
                page_sizes: HUGE_PAGE | PROCESSOR_PAGE,
                ..iommu
            }),
            dirty_page: Some(HUGE_PAGE),
            ..unit.clone()
        }),
        _ => Err(UNSUPPORTED),
    }
}

/// IOMMU_TEST_OP_MOCK_DOMAIN and IOMMU_TEST_OP_MOCK_DOMAIN_FLAGS.
pub(crate) fn create(
    iommu: &Arc<Iommu>,
    call: &mut Call<'_>,
    flags: u32,
) -> Result<Outcome, Failure> {
    if flags & !(NO_DIRTY | HAS_PASID) != 0 {
        return Err(Error::invalid("unknown flag of a mock device").into());
    }
    let (unit, pt) = (unit(iommu, flags), call.argument.id());
    let (made, retired) = call.host.nodeless_create(call.file, unit, pt)?;
    let Nodeless {
        object,
        device,
        hwpt,
    } = made;
    call.argument.set_word(8, object);
    call.argument.set_word(16, object);
    call.argument.set_word(20, hwpt);
    call.argument.set_word(24, device);
    Ok(leaves(retired))
}

/// IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE. `iommufd_test_mock_domain_replace`.
pub(crate) fn replace(call: &mut Call<'_>) -> Result<Outcome, Failure> {
    let (object, pt) = (call.argument.id(), call.argument.word(16));
    let attached = call.host.nodeless_replace(call.file, object, pt)?;
    let Attached { hwpt, retired } = attached;
    call.argument.set_word(16, hwpt);
    Ok(leaves(retired))
}

/// Whether a device of the iommufd is a mock one: ENOENT, EINVAL.
pub(crate) fn check(call: &Call<'_>, device: u32) -> Result<(), Error> {
    let unit = call.host.iommufd_unit(call.file, device)?;
    match unit.data.kind {
        INFO_KIND => Ok(()),
        _ => Err(Error::invalid("the device is no mock device")),
    }
}

/// IOMMU_TEST_OP_DEV_CHECK_CACHE. `iommufd_test_dev_check_cache`.
pub(crate) fn check_cache(call: &Call<'_>) -> Result<Outcome, Failure> {
    let unit = call.host.iommufd_unit(call.file, call.argument.id())?;
    let (word, expected) = (call.argument.word(16), call.argument.word(20));
    if unit.data.kind != INFO_KIND {
        return Err(UNSUPPORTED.into());
    }
    match word < CACHE_WORDS && expected == CACHE {
        true => Ok(Outcome::default()),
        false => Err(Error::invalid("the cache holds something else").into()),
    }
}
