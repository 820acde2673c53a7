//! Register writes that an eventfd makes: VFIO_DEVICE_IOEVENTFD. Linux
//! `drivers/vfio/pci/vfio_pci_rdwr.c`, `vfio_pci_ioeventfd`.

use iogate_pci::After;

use crate::{Descriptors, Error, ErrorKind, Event, Host, Retired, Watch};

/// How many a device may have. VFIO_PCI_IOEVENTFD_MAX.
const MOST: usize = 1000;

/// A write that an eventfd makes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IoWrite {
    /// The BAR.
    pub bar: u8,
    /// Where in it.
    pub offset: u64,
    /// Bytes: 1, 2, 4 or 8.
    pub width: u8,
    /// What is written, in the low bytes.
    pub data: u64,
}

/// The ioeventfds of a device.
#[derive(Default)]
pub(crate) struct IoEventfds {
    entries: Vec<(u64, IoWrite, Box<dyn Watch>)>,
    next: u64,
}

impl IoEventfds {
    pub(crate) fn clear(&mut self, retired: &mut Retired) {
        let entries = self.entries.drain(..);
        retired.watches.extend(entries.map(|(_, _, watch)| watch));
    }
}

impl Host {
    /// VFIO_DEVICE_IOEVENTFD: has `fd` make `write`; -1 ends it. EINVAL for a
    /// write outside the BAR or into the MSI-X table, EEXIST if an eventfd
    /// makes it already, ENODEV if there is none to end, ENOSPC beyond 1,000.
    pub fn set_ioeventfd<D: Descriptors>(
        &self,
        device: usize,
        write: IoWrite,
        fd: i32,
        descriptors: &D,
    ) -> Result<Retired, D::Error> {
        let mut retired = Retired::default();
        let slot = self.slot(device)?;
        let end = write.offset.checked_add(write.width.into());
        let bar = slot.endpoint().bar(write.bar);
        if bar.is_none_or(|bar| end.is_none_or(|end| end > bar.size)) {
            return Err(Error::invalid("the write is not inside a BAR").into());
        }
        let (table, table_end) = slot.capabilities.msix_table(write.bar);
        if end.is_none_or(|end| end > table) && write.offset < table_end {
            return Err(Error::invalid("the write hits the MSI-X table").into());
        }
        if write.width == 8 {
            return Err(Error::invalid("no 8-byte writes").into());
        }
        let mut state = slot.lock();
        let IoEventfds { entries, next } = &mut state.ioeventfds;
        let found = entries.iter().position(|(_, other, _)| *other == write);
        match (found, fd >= 0) {
            (Some(_), true) => {
                return Err(
                    Error::new(ErrorKind::Exists, "an eventfd makes this write already").into(),
                );
            }
            (Some(at), false) => {
                let (_, _, watch) = entries.remove(at);
                retired.watches.push(watch);
            }
            (None, false) => {
                return Err(Error::new(ErrorKind::NoDevice, "no eventfd makes this write").into());
            }
            (None, true) => {
                if entries.len() >= MOST {
                    return Err(
                        Error::new(ErrorKind::NoSpace, "the device has 1,000 ioeventfds").into(),
                    );
                }
                let slot = *next;
                let watch = descriptors.watch(fd, Event::Write { device, slot })?;
                *next = next.saturating_add(1);
                entries.push((slot, write, watch));
            }
        }
        drop(state);
        Ok(retired)
    }

    /// A watched eventfd was signalled.
    pub fn event(&self, event: Event) -> Retired {
        let mut retired = Retired::default();
        match event {
            Event::Write { device, slot } => {
                if self.write_event(device, slot) == After::Work {
                    retired.work = Some(device);
                }
            }
            Event::Unmask { device } => self.unmask_event(device),
        }
        retired
    }

    fn write_event(&self, device: usize, number: u64) -> After {
        let Ok(slot) = self.slot(device) else {
            return After::Nothing;
        };
        let write = {
            let state = slot.lock();
            let mut entries = state.ioeventfds.entries.iter();
            entries.find_map(|(of, write, _)| (*of == number).then_some(*write))
        };
        let Some(write) = write else {
            return After::Nothing;
        };
        let bytes = write.data.to_le_bytes();
        let bytes = bytes.get(..usize::from(write.width)).unwrap_or_default();
        // Memory that does not answer takes no write.
        slot.write_bar(write.bar, write.offset, bytes)
            .unwrap_or(After::Nothing)
    }
}
