//! IOMMU_GET_HW_INFO. Linux `drivers/iommu/iommufd/device.c`.

use iogate_host::{FileId, Host};
use tracing::Level;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::argument::{Argument, Call, answer};
use crate::trace::Told;
use crate::{Answer, Client, Errno};

/// IOMMU_HW_INFO_FLAG_INPUT_TYPE.
const INPUT_TYPE: u32 = 1;
/// IOMMU_HW_INFO_TYPE_DEFAULT: whatever the unit has, which may be none.
const DEFAULT_TYPE: u32 = 0;
/// How much of a program's buffer is zeroed in one call. Linux zeroes all of
/// it; no description of a unit is a hundredth of this.
const ZERO_LIMIT: u32 = 1 << 20;

/// `struct iommu_hw_info`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct HwInfo {
    size: u32,
    flags: u32,
    dev_id: u32,
    data_len: u32,
    data_uptr: u64,
    data_type: u32,
    out_max_pasid_log2: u8,
    reserved: [u8; 3],
    out_capabilities: u64,
}

impl Argument for HwInfo {
    const MINIMUM: u32 = 32;
}

/// IOMMU_GET_HW_INFO. Linux `iommufd_get_hw_info`.
pub(super) fn hw_info(
    host: &Host,
    file: FileId,
    argument: u64,
    client: &dyn Client,
) -> Result<Answer, Errno> {
    let run = |call: &mut Call<'_, HwInfo>| {
        let body = &mut call.body;
        if body.flags & !INPUT_TYPE != 0 || body.reserved != [0; 3] {
            return Err(Errno::EOPNOTSUPP);
        }
        let info = host.iommufd_hw_info(file, body.dev_id)?;
        let asked = match body.flags & INPUT_TYPE {
            0 => DEFAULT_TYPE,
            _ => body.data_type,
        };
        if ![DEFAULT_TYPE, info.data.kind].contains(&asked) {
            return Err(Errno::EOPNOTSUPP);
        }
        let bytes = &info.data.bytes;
        let room = usize::try_from(body.data_len).unwrap_or(usize::MAX);
        let (told, _) = bytes.split_at(room.min(bytes.len()));
        if !told.is_empty() {
            client.write(body.data_uptr, told)?;
        }
        let length = u32::try_from(told.len()).unwrap_or(u32::MAX);
        let rest = body.data_uptr.checked_add(length.into());
        let left = body.data_len.saturating_sub(length);
        zero(client, rest.ok_or(Errno::EFAULT)?, left)?;
        body.data_len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        body.data_type = info.data.kind;
        body.out_max_pasid_log2 = info.max_pasid_log2;
        body.out_capabilities = info.capabilities;
        call.respond()?;
        Ok(Answer::value(0))
    };
    answer(client, argument, run, |body, result| {
        tracing::event!(
            name: "ioctl_get_hw_info",
            target: "iogate",
            Level::INFO,
            file = file.0,
            device = body.dev_id,
            capabilities = format_args!("{:#x}", body.out_capabilities),
            result = %Told(result),
        );
    })
}

/// Zeroes the part of the program's buffer that there is nothing for.
fn zero(client: &dyn Client, address: u64, length: u32) -> Result<(), Errno> {
    let mut at = address;
    let mut left = length.min(ZERO_LIMIT);
    while left > 0 {
        let piece = left.min(4096);
        let zeroes = [0; 4096];
        let length = usize::try_from(piece).map_err(|_| Errno::EFAULT)?;
        let (zeroes, _) = zeroes.split_at(length);
        client.write(at, zeroes)?;
        at = at.checked_add(piece.into()).ok_or(Errno::EFAULT)?;
        left = left.saturating_sub(piece);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iommufd::same_layout;
    use iommufd_bindings::iommufd as bindings;

    #[test]
    fn structures_are_laid_out_as_the_kernels() {
        same_layout!(HwInfo, bindings::iommu_hw_info, {
            size: size, flags: flags, dev_id: dev_id, data_len: data_len, data_uptr: data_uptr,
            data_type: __bindgen_anon_1, out_max_pasid_log2: out_max_pasid_log2,
            reserved: __reserved, out_capabilities: out_capabilities,
        });
    }
}
