//! IOMMU_FAULT_QUEUE_ALLOC, and reads and writes of the file of a fault queue.
//! Linux `drivers/iommu/iommufd/eventq.c`.

use iogate_host::iommufd::{FaultGroup, PageAnswer, PageFault};
use iogate_host::{FileId, Host};
use tracing::Level;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::argument::{Argument, Call, answer};
use crate::trace::Told;
use crate::{Answer, Client, Errno};

/// `struct iommu_fault_alloc`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct FaultAlloc {
    size: u32,
    flags: u32,
    out_fault_id: u32,
    out_fault_fd: u32,
}

impl Argument for FaultAlloc {
    const MINIMUM: u32 = 16;
}

/// `struct iommu_hwpt_pgfault`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Message {
    flags: u32,
    dev_id: u32,
    pasid: u32,
    grpid: u32,
    perm: u32,
    reserved: u32,
    addr: u64,
    length: u32,
    cookie: u32,
}

/// IOMMU_PGFAULT_FLAGS_PASID_VALID and IOMMU_PGFAULT_FLAGS_LAST_PAGE.
const PASID_VALID: u32 = 1;
const LAST_PAGE: u32 = 2;
/// Bytes of a message.
const MESSAGE: u64 = 40;

/// `struct iommu_hwpt_page_response`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Response {
    cookie: u32,
    code: u32,
}

/// `enum iommufd_page_response_code`.
const SUCCESS: u32 = 0;
const INVALID: u32 = 1;
/// Bytes of a response.
const RESPONSE: u64 = 8;

/// IOMMU_FAULT_QUEUE_ALLOC. Linux `iommufd_fault_alloc`.
pub(super) fn alloc(
    host: &Host,
    file: FileId,
    argument: u64,
    client: &dyn Client,
) -> Result<Answer, Errno> {
    let run = |call: &mut Call<'_, FaultAlloc>| {
        if call.body.flags != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let (id, queue) = host.fault_queue_alloc(file)?;
        call.body.out_fault_id = id;
        // The answer must find room before there is a descriptor, which cannot
        // be taken back.
        let installed = call.respond().and_then(|()| client.install(queue));
        let told = installed.and_then(|fd| {
            call.body.out_fault_fd = fd.cast_unsigned();
            call.respond()
        });
        let Err(errno) = told else {
            return Ok(Answer::value(0));
        };
        let closed = installed.is_err().then(|| host.close(queue));
        // A descriptor that is there keeps its queue.
        let _ = host.iommufd_destroy(file, id);
        Ok(Answer::failed(errno, closed.unwrap_or_default().into()))
    };
    answer(client, argument, run, |body, result| {
        tracing::event!(
            name: "ioctl_fault_queue_alloc",
            target: "iogate",
            Level::INFO,
            file = file.0,
            queue = body.out_fault_id,
            result = %Told(result),
        );
    })
}

/// Bytes that one call moves at most. include/linux/fs.h, MAX_RW_COUNT.
const MOST: u64 = 0x7fff_f000;

/// read(2) and readv(2) of a fault queue's file: how many bytes were read. Each
/// piece, an address and a length, is a read of its own, and the first that is
/// not filled ends the call. Linux `do_loop_readv_writev`.
pub(crate) fn read(
    host: &Host,
    file: FileId,
    pieces: &[(u64, u64)],
    client: &dyn Client,
) -> Result<Answer, Errno> {
    let result = each(pieces, |piece| read_piece(host, file, piece, client));
    tracing::event!(
        name: "fault_read",
        target: "iogate",
        Level::INFO,
        file = file.0,
        result = %Told(&result),
    );
    result
}

/// write(2) and writev(2), as [`read`].
pub(crate) fn write(
    host: &Host,
    file: FileId,
    pieces: &[(u64, u64)],
    client: &dyn Client,
) -> Result<Answer, Errno> {
    let result = each(pieces, |piece| write_piece(host, file, piece, client));
    tracing::event!(
        name: "fault_write",
        target: "iogate",
        Level::INFO,
        file = file.0,
        result = %Told(&result),
    );
    result
}

fn each(
    pieces: &[(u64, u64)],
    mut part: impl FnMut((u64, u64)) -> Result<u64, Errno>,
) -> Result<Answer, Errno> {
    let mut done = 0_u64;
    for &(address, length) in pieces {
        let length = length.min(MOST.saturating_sub(done));
        match part((address, length)) {
            Ok(moved) => {
                done = done.saturating_add(moved);
                if moved != length {
                    break;
                }
            }
            Err(errno) if done == 0 => return Err(errno),
            Err(_) => break,
        }
    }
    Ok(Answer::value(i64::try_from(done).unwrap_or(i64::MAX)))
}

/// Reads whole groups into the `length` bytes at `address`, as many as there
/// are and fit: ESPIPE unless they are room for whole messages; EINVAL if the
/// first group does not fit; EFAULT. Nothing is waited for: 0 means that there
/// is nothing. Linux `iommufd_fault_fops_read`.
fn read_piece(
    host: &Host,
    file: FileId,
    (address, length): (u64, u64),
    client: &dyn Client,
) -> Result<u64, Errno> {
    if length % MESSAGE != 0 {
        return Err(Errno::ESPIPE);
    }
    let mut done = 0_u64;
    loop {
        let room = length.saturating_sub(done).checked_div(MESSAGE);
        let room = room.and_then(|room| usize::try_from(room).ok());
        let told = host
            .fault_take(file, room.unwrap_or_default())
            .map_err(Errno::from)
            .and_then(|group| match group {
                Some(group) => tell(host, file, address.wrapping_add(done), &group, client),
                None => Ok(0),
            });
        match told {
            Ok(0) => return Ok(done),
            Ok(bytes) => done = done.saturating_add(bytes),
            Err(errno) if done == 0 => return Err(errno),
            Err(_) => return Ok(done),
        }
    }
}

/// Writes a group's messages to the client, or puts it back.
fn tell(
    host: &Host,
    file: FileId,
    address: u64,
    group: &FaultGroup,
    client: &dyn Client,
) -> Result<u64, Errno> {
    let last = group.faults.len().saturating_sub(1);
    let messages = group.faults.iter().enumerate();
    let messages = messages.flat_map(|(place, fault)| {
        let end = if place == last { LAST_PAGE } else { 0 };
        message(group, fault, end)
    });
    let bytes: Vec<u8> = messages.collect();
    match client.write(address, &bytes) {
        Ok(()) => Ok(u64::try_from(bytes.len()).unwrap_or(u64::MAX)),
        Err(error) => {
            host.fault_restore(file, group.cookie)?;
            Err(error.into())
        }
    }
}

fn message(group: &FaultGroup, fault: &PageFault, end: u32) -> [u8; 40] {
    let message = Message {
        flags: end
            | if fault.pasid.is_some() {
                PASID_VALID
            } else {
                0
            },
        dev_id: group.device,
        pasid: fault.pasid.unwrap_or_default(),
        grpid: fault.group,
        perm: fault.permissions,
        reserved: 0,
        addr: fault.address,
        length: 0,
        cookie: group.cookie,
    };
    zerocopy::transmute!(message)
}

/// Takes responses from the `length` bytes at `address`: ESPIPE unless they are
/// whole ones; EFAULT; EINVAL for one that answers nothing. The first that is
/// refused ends it, with what was taken before. Linux
/// `iommufd_fault_fops_write`.
fn write_piece(
    host: &Host,
    file: FileId,
    (address, length): (u64, u64),
    client: &dyn Client,
) -> Result<u64, Errno> {
    if length % RESPONSE != 0 {
        return Err(Errno::ESPIPE);
    }
    let mut done = 0_u64;
    while done < length {
        match take(host, file, address.wrapping_add(done), client) {
            Ok(()) => done = done.saturating_add(RESPONSE),
            Err(errno) if done == 0 => return Err(errno),
            Err(_) => break,
        }
    }
    Ok(done)
}

fn take(host: &Host, file: FileId, address: u64, client: &dyn Client) -> Result<(), Errno> {
    let mut bytes = [0; 8];
    client.read(address, &mut bytes)?;
    let response: Response = zerocopy::transmute!(bytes);
    let answer = match response.code {
        SUCCESS => PageAnswer::Success,
        INVALID => PageAnswer::Invalid,
        _ => return Err(Errno::EINVAL),
    };
    Ok(host.fault_answer(file, response.cookie, answer)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iommufd::same_layout;
    use iommufd_bindings::iommufd as bindings;

    #[test]
    fn structures_are_laid_out_as_the_kernels() {
        same_layout!(FaultAlloc, bindings::iommu_fault_alloc, {
            size: size, flags: flags, out_fault_id: out_fault_id, out_fault_fd: out_fault_fd,
        });
        same_layout!(Message, bindings::iommu_hwpt_pgfault, {
            flags: flags, dev_id: dev_id, pasid: pasid, grpid: grpid, perm: perm,
            reserved: __reserved, addr: addr, length: length, cookie: cookie,
        });
        same_layout!(Response, bindings::iommu_hwpt_page_response, {
            cookie: cookie, code: code,
        });
        assert_eq!((size_of::<Message>(), size_of::<Response>()), (40, 8));
    }
}
