//! How an iommufd call's argument is read and answered: a structure that says
//! its own size, so that programs and kernels of different age understand each
//! other. Linux `drivers/iommu/iommufd/main.c`, `iommufd_fops_ioctl`, and
//! `lib/usercopy.c`, `copy_struct_from_user`.

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::{Answer, Client, Errno};

/// How much of a structure's unknown tail is looked at. Linux has no limit; a
/// program that passes more is not the client of any kernel there is.
const TAIL_LIMIT: u64 = 1 << 20;

/// The structure of a call, as `include/uapi/linux/iommufd.h` lays it out.
pub(super) trait Argument: Copy + FromBytes + IntoBytes + Immutable {
    /// Bytes that the first kernel with this call wanted.
    const MINIMUM: u32;
}

/// A call's argument: a copy, made once, and where the reply goes.
pub(super) struct Call<'c, T> {
    pub(super) client: &'c dyn Client,
    address: u64,
    size: u32,
    pub(super) body: T,
}

impl<'c, T: Argument> Call<'c, T> {
    /// Reads the argument at `address`. EFAULT; EINVAL below the minimum;
    /// E2BIG for a tail that is not zero.
    fn read(client: &'c dyn Client, address: u64) -> Result<Self, Errno> {
        let mut size = [0; 4];
        client.read(address, &mut size)?;
        let size = u32::from_ne_bytes(size);
        if size < T::MINIMUM {
            return Err(Errno::EINVAL);
        }
        let mut body = T::new_zeroed();
        let ours = body.as_mut_bytes();
        let tail = u64::try_from(ours.len()).unwrap_or(u64::MAX);
        check_tail(client, address, tail, size.into())?;
        let known = usize::try_from(size).map_or(ours.len(), |size| size.min(ours.len()));
        let (ours, _) = ours.split_at_mut(known);
        client.read(address, ours)?;
        Ok(Self {
            client,
            address,
            size,
            body,
        })
    }

    /// Writes the structure back, no more than the client gave room for.
    pub(super) fn respond(&self) -> Result<(), Errno> {
        let ours = self.body.as_bytes();
        let known = usize::try_from(self.size).map_or(ours.len(), |size| size.min(ours.len()));
        let (reply, _) = ours.split_at(known);
        Ok(self.client.write(self.address, reply)?)
    }

    /// Writes `bytes` at `offset` of the client's structure.
    pub(super) fn respond_at(&self, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        let at = self.address.checked_add(offset).ok_or(Errno::EFAULT)?;
        Ok(self.client.write(at, bytes)?)
    }
}

/// Whether the bytes from `from` to `to` of the structure are all zero.
fn check_tail(client: &dyn Client, address: u64, from: u64, to: u64) -> Result<(), Errno> {
    let mut buffer = [0; 4096];
    let mut at = from;
    while at < to {
        if at.wrapping_sub(from) >= TAIL_LIMIT {
            return Err(Errno::E2BIG);
        }
        let left = usize::try_from(to.wrapping_sub(at)).unwrap_or(usize::MAX);
        let (piece, _) = buffer.split_at_mut(left.min(4096));
        client.read(address.checked_add(at).ok_or(Errno::EFAULT)?, piece)?;
        if piece.iter().any(|byte| *byte != 0) {
            return Err(Errno::E2BIG);
        }
        at = at.saturating_add(4096);
    }
    Ok(())
}

/// Reads the argument, runs the call, and tells the trace either way.
pub(super) fn answer<T: Argument>(
    client: &dyn Client,
    address: u64,
    run: impl FnOnce(&mut Call<'_, T>) -> Result<Answer, Errno>,
    tell: impl FnOnce(&T, &Result<Answer, Errno>),
) -> Result<Answer, Errno> {
    let (body, result) = match Call::read(client, address) {
        Ok(mut call) => {
            let result = run(&mut call);
            (call.body, result)
        }
        Err(errno) => (T::new_zeroed(), Err(errno)),
    };
    tell(&body, &result);
    result
}
