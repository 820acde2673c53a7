//! The objects of an iommufd and their numbers. Linux
//! `drivers/iommu/iommufd/main.c`, `iommufd_get_object`.

use std::collections::BTreeMap;

use std::sync::Arc;

use super::access::Access;
use super::fault::QueueObject;
use super::hwpt::Hwpt;
use super::ioas::IoasObject;
use super::numbers::Numbers;
use super::unit::Unit;
use crate::{Error, ErrorKind};

/// Objects that one iommufd may have: past this, ENOMEM. Linux has no number
/// for it; there each costs its owner memory.
const LIMIT: usize = 1 << 16;

/// By what devices share their page table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum GroupKey {
    /// A group of the machine, by number.
    Machine(u32),
    /// A device by itself, by a number of its own.
    Single(u32),
}

/// A device that is bound to the iommufd.
#[derive(Clone, Debug)]
pub(crate) struct BoundDevice {
    pub(crate) group: GroupKey,
    /// The unit that it stands behind.
    pub(crate) unit: Arc<Unit>,
}

/// What a number stands for.
pub(crate) enum Object {
    Device(BoundDevice),
    Ioas(IoasObject),
    Hwpt(Hwpt),
    Access(Access),
    /// A device without a node: with this it is unbound.
    Nodeless(u32),
    FaultQueue(QueueObject),
}

/// Objects by number: one space for all kinds, from 1, the lowest free first.
#[derive(Default)]
pub(crate) struct Objects {
    entries: BTreeMap<u32, Object>,
    numbers: Numbers,
}

impl Objects {
    /// Enters an object: ENOMEM past the limit.
    pub(crate) fn insert(&mut self, object: Object) -> Result<u32, Error> {
        if self.entries.len() >= LIMIT {
            return Err(Error::new(
                ErrorKind::NoMemory,
                "the iommufd has too many objects",
            ));
        }
        let id = self.numbers.take();
        self.entries.insert(id, object);
        Ok(id)
    }

    /// Takes an object out; its number is free.
    pub(crate) fn remove(&mut self, id: u32) -> Option<Object> {
        let object = self.entries.remove(&id)?;
        self.numbers.give(id);
        Some(object)
    }

    /// The object with this number, whatever it is: ENOENT.
    pub(crate) fn any(&self, id: u32) -> Result<&Object, Error> {
        self.entries.get(&id).ok_or(Error::new(
            ErrorKind::NotFound,
            "the iommufd has no object with this id",
        ))
    }

    /// The IOAS with this number: ENOENT, also for an object of another type.
    pub(crate) fn ioas(&self, id: u32) -> Result<&IoasObject, Error> {
        match self.entries.get(&id) {
            Some(Object::Ioas(ioas)) => Ok(ioas),
            _ => Err(NO_IOAS),
        }
    }

    pub(crate) fn ioas_mut(&mut self, id: u32) -> Result<&mut IoasObject, Error> {
        match self.entries.get_mut(&id) {
            Some(Object::Ioas(ioas)) => Ok(ioas),
            _ => Err(NO_IOAS),
        }
    }

    /// The page table with this number: ENOENT, also for an object of another
    /// type.
    pub(crate) fn hwpt(&self, id: u32) -> Result<&Hwpt, Error> {
        match self.entries.get(&id) {
            Some(Object::Hwpt(hwpt)) => Ok(hwpt),
            _ => Err(NO_HWPT),
        }
    }

    pub(crate) fn hwpt_mut(&mut self, id: u32) -> Result<&mut Hwpt, Error> {
        match self.entries.get_mut(&id) {
            Some(Object::Hwpt(hwpt)) => Ok(hwpt),
            _ => Err(NO_HWPT),
        }
    }

    /// The access with this number: ENOENT, also for an object of another
    /// type.
    pub(crate) fn access(&self, id: u32) -> Result<Access, Error> {
        match self.entries.get(&id) {
            Some(Object::Access(access)) => Ok(*access),
            _ => Err(NO_ACCESS),
        }
    }

    pub(crate) fn access_mut(&mut self, id: u32) -> Result<&mut Access, Error> {
        match self.entries.get_mut(&id) {
            Some(Object::Access(access)) => Ok(access),
            _ => Err(NO_ACCESS),
        }
    }

    /// The device with this number: ENOENT, also for an object of another
    /// type.
    pub(crate) fn device(&self, id: u32) -> Result<&BoundDevice, Error> {
        match self.entries.get(&id) {
            Some(Object::Device(device)) => Ok(device),
            _ => Err(Error::new(
                ErrorKind::NotFound,
                "the iommufd has no device with this id",
            )),
        }
    }

    /// The device that an object stands for: ENOENT.
    pub(crate) fn nodeless(&self, id: u32) -> Result<u32, Error> {
        match self.entries.get(&id) {
            Some(Object::Nodeless(device)) => Ok(*device),
            _ => Err(Error::new(
                ErrorKind::NotFound,
                "the iommufd has no device object with this id",
            )),
        }
    }

    pub(crate) fn nodeless_mut(&mut self, id: u32) -> Option<&mut u32> {
        match self.entries.get_mut(&id) {
            Some(Object::Nodeless(device)) => Some(device),
            _ => None,
        }
    }

    /// The fault queue with this number: ENOENT, also for an object of another
    /// type.
    pub(crate) fn fault_queue(&self, id: u32) -> Result<&QueueObject, Error> {
        match self.entries.get(&id) {
            Some(Object::FaultQueue(queue)) => Ok(queue),
            _ => Err(Error::new(
                ErrorKind::NotFound,
                "the iommufd has no fault queue with this id",
            )),
        }
    }

    pub(crate) fn fault_queue_mut(&mut self, id: u32) -> Option<&mut QueueObject> {
        match self.entries.get_mut(&id) {
            Some(Object::FaultQueue(queue)) => Some(queue),
            _ => None,
        }
    }

    /// Whether there are none.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether a device of the machine is bound, or an access or a fault queue
    /// open: they hold the iommufd.
    pub(crate) fn are_held(&self) -> bool {
        let mut objects = self.entries.values();
        objects.any(|object| match object {
            Object::Device(device) => matches!(device.group, GroupKey::Machine(_)),
            Object::Access(_) => true,
            Object::FaultQueue(queue) => queue.is_open,
            Object::Ioas(_) | Object::Hwpt(_) | Object::Nodeless(_) => false,
        })
    }

    /// All IOASes.
    pub(crate) fn ioases(&self) -> impl Iterator<Item = &IoasObject> {
        let objects = self.entries.values();
        objects.filter_map(|object| match object {
            Object::Ioas(ioas) => Some(ioas),
            _ => None,
        })
    }

    /// All page tables.
    pub(crate) fn hwpts(&self) -> impl Iterator<Item = &Hwpt> {
        let objects = self.entries.values();
        objects.filter_map(|object| match object {
            Object::Hwpt(hwpt) => Some(hwpt),
            _ => None,
        })
    }

    /// All of them, by number.
    pub(crate) fn into_values(self) -> impl Iterator<Item = Object> {
        self.entries.into_values()
    }
}

const NO_HWPT: Error = Error::new(
    ErrorKind::NotFound,
    "the iommufd has no page table with this id",
);
const NO_ACCESS: Error = Error::new(
    ErrorKind::NotFound,
    "the iommufd has no access with this id",
);
const NO_IOAS: Error = Error::new(ErrorKind::NotFound, "the iommufd has no IOAS with this id");

#[cfg(test)]
mod tests {
    use super::*;

    fn object(device: u32) -> Object {
        Object::Nodeless(device)
    }

    #[test]
    fn numbers_start_at_one_and_the_lowest_free_is_next() {
        let mut objects = Objects::default();
        for expected in 1..=4 {
            assert_eq!(objects.insert(object(0)), Ok(expected));
        }
        assert!(objects.remove(3).is_some() && objects.remove(2).is_some());
        assert!(objects.remove(2).is_none());
        assert_eq!(objects.insert(object(7)), Ok(2));
        assert_eq!(objects.insert(object(8)), Ok(3));
        assert_eq!(objects.insert(object(9)), Ok(5));
        assert_eq!(objects.nodeless(2), Ok(7));
    }

    #[test]
    fn a_number_of_another_type_is_as_good_as_none() {
        let mut objects = Objects::default();
        let id = objects.insert(object(0)).unwrap();
        assert_eq!(objects.ioas(id).err().unwrap().kind, ErrorKind::NotFound);
        assert_eq!(objects.hwpt(id).err().unwrap().kind, ErrorKind::NotFound);
        assert_eq!(objects.any(0).err().unwrap().kind, ErrorKind::NotFound);
        assert!(objects.any(id).is_ok());
    }

    #[test]
    fn objects_are_not_unbounded() {
        let mut objects = Objects::default();
        for _ in 0..LIMIT {
            objects.insert(object(0)).unwrap();
        }
        assert_eq!(
            objects.insert(object(0)).unwrap_err().kind,
            ErrorKind::NoMemory
        );
        objects.remove(9).unwrap();
        assert_eq!(objects.insert(object(0)), Ok(9));
    }
}
