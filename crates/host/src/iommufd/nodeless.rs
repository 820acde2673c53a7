//! Devices that are none of the machine's: an extension makes them, bound and
//! attached from the start, and an object of the iommufd stands for each.

use std::sync::Arc;

use iogate_dma::Span;

use super::ioas::in_use;
use super::objects::{BoundDevice, GroupKey, Object};
use super::unit::Unit;
use super::{Attached, Context, Failure};
use crate::{Error, FileId, Host, Retired};

/// A device that was made, bound and attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Nodeless {
    /// The object whose end unbinds the device.
    pub object: u32,
    /// The device.
    pub device: u32,
    /// The page table that it uses.
    pub hwpt: u32,
}

/// Who reserves what an extension asks for: no object has this number.
const EXTENSION: u64 = u64::MAX;

impl Host {
    /// Makes a device behind `unit` and attaches it to `pt`. ENOENT without the
    /// object; else as an attach.
    pub fn nodeless_create(
        &self,
        file: FileId,
        unit: Unit,
        pt: u32,
    ) -> Result<(Nodeless, Retired), Failure> {
        let mut state = self.lock();
        let state = &mut *state;
        let context = state.iommufds.get_mut(&file).ok_or(Context::NONE)?;
        let object = context.objects.insert(Object::Nodeless(0))?;
        let bound = context.objects.insert(Object::Device(BoundDevice {
            group: GroupKey::Single(object),
            unit: Arc::new(unit),
        }));
        let device = match bound {
            Ok(device) => device,
            Err(error) => {
                context.objects.remove(object);
                return Err(error.into());
            }
        };
        if let Some(entry) = context.objects.nodeless_mut(object) {
            *entry = device;
        }
        match self.attach_pt(state, file, device, pt) {
            Ok(Attached { hwpt, retired }) => {
                let made = Nodeless {
                    object,
                    device,
                    hwpt,
                };
                Ok((made, retired))
            }
            Err(mut failure) => {
                self.unbind(state, file, device, &mut failure.retired);
                if let Some(context) = state.iommufds.get_mut(&file) {
                    context.objects.remove(object);
                }
                Err(failure)
            }
        }
    }

    /// Attaches the device of `object` to another page table. ENOENT without
    /// either; else as an attach.
    pub fn nodeless_replace(
        &self,
        file: FileId,
        object: u32,
        pt: u32,
    ) -> Result<Attached, Failure> {
        let mut state = self.lock();
        let context = state.iommufds.get_mut(&file).ok_or(Context::NONE)?;
        let device = context.objects.nodeless(object)?;
        self.attach_pt(&mut state, file, device, pt)
    }

    /// The unit of a bound device. ENOENT.
    pub fn iommufd_unit(&self, file: FileId, device: u32) -> Result<Arc<Unit>, Error> {
        let state = self.lock();
        let context = state.iommufds.get(&file).ok_or(Context::NONE)?;
        Ok(Arc::clone(&context.objects.device(device)?.unit))
    }

    /// Keeps `span` of an IOAS free for as long as the IOAS lives. ENOENT;
    /// EADDRINUSE if a mapping or an allowed range is there. Linux
    /// `iopt_reserve_iova`.
    pub fn ioas_reserve(&self, file: FileId, ioas: u32, span: Span) -> Result<(), Error> {
        let state = self.lock();
        let context = state.iommufds.get(&file).ok_or(Context::NONE)?;
        let space = context.objects.ioas(ioas)?.space.space();
        space.reserve(EXTENSION, span).map_err(in_use)
    }
}
