//! IOMMU_TEST_CMD, and the program as the session's extension sees it.

use std::sync::Arc;

use iogate_host::iommufd::Outside;
use iogate_host::{Actor, Caller, Error, ErrorKind, FileId, Host, Memlock, Pages};
use tracing::Level;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::argument::{Argument, Call, answer};
use super::refuse;
use crate::trace::Told;
use crate::{Answer, Client, Errno, Named};

/// `struct iommu_test_cmd`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub(super) struct Operation {
    size: u32,
    op: u32,
    rest: [u64; 8],
}

impl Argument for Operation {
    const MINIMUM: u32 = 68;
}

/// One operation of the session's extension.
pub(super) fn call(
    host: &Host,
    file: FileId,
    argument: u64,
    client: &dyn Client,
) -> Result<Answer, Errno> {
    let run = |call: &mut Call<'_, Operation>| {
        let extension = host.extension().ok_or(Errno::ENOTTY)?;
        let mut bytes = [0; 72];
        bytes.copy_from_slice(call.body.as_bytes());
        let outcome = match extension.call(host, file, &mut bytes, &Program(client)) {
            Ok(outcome) => outcome,
            Err(failure) => return refuse(failure),
        };
        call.body.as_mut_bytes().copy_from_slice(&bytes);
        let after = outcome.retired.into();
        match call.respond() {
            Ok(()) => Ok(Answer {
                value: outcome.value,
                after,
                ..Answer::default()
            }),
            Err(errno) => Ok(Answer::failed(errno, after)),
        }
    };
    answer(client, argument, run, |body: &Operation, result| {
        tracing::event!(
            name: "ioctl_test",
            target: "iogate",
            Level::INFO,
            file = file.0,
            op = body.op,
            result = %Told(result),
        );
    })
}

struct Program<'c>(&'c dyn Client);

const ABSENT: Error = Error::new(ErrorKind::Fault, "the program has no memory there");

impl Caller for Program<'_> {
    fn actor(&self) -> Actor {
        self.0.actor()
    }

    fn address_space(&self) -> u64 {
        self.0.address_space()
    }

    fn user(&self) -> u32 {
        self.0.user()
    }

    fn memlock(&self) -> Memlock {
        self.0.memlock()
    }

    fn has_raw_io(&self) -> bool {
        self.0.has_raw_io()
    }

    fn has_sys_resource(&self) -> bool {
        self.0.has_sys_resource()
    }
}

impl Outside for Program<'_> {
    fn read(&self, address: u64, into: &mut [u8]) -> Result<(), Error> {
        self.0.read(address, into).map_err(|_| ABSENT)
    }

    fn write(&self, address: u64, from: &[u8]) -> Result<(), Error> {
        self.0.write(address, from).map_err(|_| ABSENT)
    }

    fn file(&self, fd: i32) -> Result<Option<FileId>, Error> {
        match self.0.named(fd) {
            Ok(Named::Ours(file)) => Ok(Some(file)),
            Ok(Named::Other) => Ok(None),
            Err(_) => Err(Error::new(
                ErrorKind::BadDescriptor,
                "the descriptor is not open",
            )),
        }
    }

    fn pages(&self, address: u64, length: u64) -> Arc<dyn Pages> {
        self.0.pages(address, length)
    }

    fn install(&self, file: FileId) -> Result<i32, Error> {
        self.0.install(file).map_err(|_| {
            Error::new(
                ErrorKind::NoMemory,
                "the program can have no more descriptors",
            )
        })
    }
}
