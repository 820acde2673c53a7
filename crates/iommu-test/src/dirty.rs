//! Pages that a mock device wrote. Linux `drivers/iommu/iommufd/selftest.c`,
//! `iommufd_test_dirty`.

use iogate_dma::Iova;
use iogate_host::Error;
use iogate_host::iommufd::{Failure, Outcome};

use crate::check::MOST;
use crate::{Call, UNSUPPORTED};

/// IOMMU_TEST_OP_DIRTY: the pages whose bits are set in the program's bitmap
/// were written; says how many.
pub(crate) fn set(call: &mut Call<'_>) -> Result<Outcome, Failure> {
    let argument = &call.argument;
    let (flags, iova, length) = (argument.word(16), argument.quad(24), argument.quad(32));
    let (page, address) = (argument.quad(40), argument.quad(48));
    if flags != 0 {
        return Err(UNSUPPORTED.into());
    }
    let is_multiple = |value: u64| value.checked_rem(page) == Some(0);
    if length == 0 || length > MOST || !is_multiple(length) || !is_multiple(iova) || address == 0 {
        return Err(Error::invalid("not whole pages").into());
    }
    let pages = length.checked_div(page).unwrap_or(0);
    let bytes = usize::try_from(pages.div_ceil(8)).unwrap_or(usize::MAX);
    let mut bitmap = vec![0_u8; bytes];
    call.program.read(address, &mut bitmap)?;
    let mut written = Vec::new();
    for (place, byte) in (0_u64..).zip(&bitmap) {
        for bit in (0..8).filter(|bit| byte >> bit & 1 != 0) {
            let number = place.saturating_mul(8).saturating_add(bit);
            if number < pages {
                let offset = number.saturating_mul(page);
                written.extend(iova.checked_add(offset).map(Iova));
            }
        }
    }
    call.host
        .hwpt_set_dirty(call.file, call.argument.id(), &written)?;
    let count = u64::try_from(written.len()).unwrap_or(u64::MAX);
    call.argument.set_quad(56, count);
    Ok(Outcome::default())
}
