//! Accesses, each behind a descriptor. Linux
//! `drivers/iommu/iommufd/selftest.c`, `iommufd_test_create_access` and what
//! follows it.

use iogate_dma::{Iova, Rights};
use iogate_host::iommufd::{AccessMode, AccessPages, Failure, Outcome};
use iogate_host::{Error, ErrorKind, FileId};

use crate::check::{MOST, joined, memory};
use crate::{Call, UNSUPPORTED, leaves, span};

/// MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES.
const PINS: u32 = 1;
/// MOCK_FLAGS_ACCESS_WRITE and MOCK_ACCESS_RW_WRITE.
const WRITE: u32 = 1;
/// MOCK_ACCESS_RW_SLOW_PATH: by way of pages that are pinned for it, which is
/// the only way here.
const SLOW: u32 = 4;
/// Bytes that are read or written at most: past this, ENOMEM.
const LONGEST: u64 = 16 << 20;

/// IOMMU_TEST_OP_CREATE_ACCESS.
pub(crate) fn create(call: &mut Call<'_>) -> Result<Outcome, Failure> {
    let mode = match call.argument.word(20) {
        0 => AccessMode::Copies,
        PINS => AccessMode::Pins,
        _ => return Err(UNSUPPORTED.into()),
    };
    let ioas = call.argument.id();
    let access = call.host.access_create(call.file, ioas, mode)?;
    let installed = call.program.install(access);
    let fd = installed.map_err(|error| Failure {
        error,
        retired: Box::new(call.host.close(access)),
    })?;
    call.argument.set_word(16, fd.cast_unsigned());
    Ok(Outcome::default())
}

/// The access that the operation names by its descriptor.
fn access(call: &Call<'_>) -> Result<FileId, Error> {
    const NONE: Error = Error::new(ErrorKind::BadDescriptor, "the descriptor is no access");
    call.program
        .file(call.argument.id().cast_signed())?
        .ok_or(NONE)
}

/// IOMMU_TEST_OP_ACCESS_REPLACE_IOAS.
pub(crate) fn replace(call: &Call<'_>) -> Result<Outcome, Failure> {
    let ioas = call.argument.word(16);
    Ok(leaves(call.host.access_replace(access(call)?, ioas)?))
}

/// IOMMU_TEST_OP_ACCESS_PAGES: pins, and compares with the program's memory if
/// it names some: EINVAL if that is other memory.
pub(crate) fn pin(call: &mut Call<'_>) -> Result<Outcome, Failure> {
    let argument = &call.argument;
    let (flags, iova) = (argument.word(16), argument.quad(24));
    let (length, address) = (argument.quad(32), argument.quad(40));
    if flags & !WRITE != 0 {
        return Err(UNSUPPORTED.into());
    }
    if length > MOST {
        return Err(Error::new(ErrorKind::NoMemory, "too many pages").into());
    }
    let rights = Rights::new(true, flags & WRITE != 0);
    let access = access(call)?;
    let pinned = call.host.access_pin(access, span(iova, length)?, rights)?;
    let AccessPages { id, segments } = pinned;
    let is_same = match address {
        0 => Ok(true),
        _ => memory(call.program, address, length)
            .map(|expected| joined(&expected) == joined(&segments)),
    };
    let wrong = match is_same {
        Ok(true) => {
            call.argument.set_word(20, id);
            return Ok(Outcome::default());
        }
        Ok(false) => Error::invalid("the access pinned something else"),
        Err(error) => error,
    };
    Err(Failure {
        error: wrong,
        retired: Box::new(call.host.access_unpin(access, id)?),
    })
}

/// IOMMU_TEST_OP_DESTROY_ACCESS_PAGES.
pub(crate) fn unpin(call: &Call<'_>) -> Result<Outcome, Failure> {
    let pages = call.argument.word(16);
    Ok(leaves(call.host.access_unpin(access(call)?, pages)?))
}

/// IOMMU_TEST_OP_ACCESS_RW.
pub(crate) fn read_or_write(call: &Call<'_>) -> Result<Outcome, Failure> {
    let argument = &call.argument;
    let (iova, length) = (Iova(argument.quad(16)), argument.quad(24));
    let (address, flags) = (argument.quad(32), argument.word(40));
    if flags & !(WRITE | SLOW) != 0 {
        return Err(UNSUPPORTED.into());
    }
    let access = access(call)?;
    let length = usize::try_from(length).ok();
    let length = length.filter(|_| argument.quad(24) <= LONGEST);
    let length = length.ok_or(Error::new(ErrorKind::NoMemory, "too many bytes"))?;
    let mut bytes = vec![0; length];
    if flags & WRITE != 0 {
        call.program.read(address, &mut bytes)?;
        call.host.access_write(access, iova, &bytes)?;
    } else {
        call.host.access_read(access, iova, &mut bytes)?;
        call.program.write(address, &bytes)?;
    }
    Ok(Outcome::default())
}
