//! Windows of I/O addresses whose writes are interrupts, and the doorbell
//! pages mapped into them.

use std::sync::{Mutex, PoisonError};

use iogate_dma::{Iova, Span};

/// Bytes of a doorbell page.
const PAGE: u64 = 4096;

/// What kind of window it is. Linux `include/linux/iommu.h`,
/// `enum iommu_resv_type`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum WindowKind {
    /// The hardware knows the window: `IOMMU_RESV_MSI`.
    Fixed,
    /// Software maps doorbell pages there: `IOMMU_RESV_SW_MSI`.
    Software,
}

/// An I/O address range reserved for messages.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Window {
    first: u64,
    last: u64,
    kind: WindowKind,
}

impl Window {
    /// The window of x86: fee00000-feefffff. Intel SDM volume 3 section 12.11.
    pub const X86: Self = Self {
        first: 0xfee0_0000,
        last: 0xfeef_ffff,
        kind: WindowKind::Fixed,
    };

    /// Where Linux puts the window on Arm: 1 MiB at 8000000. Linux
    /// `drivers/iommu/arm/arm-smmu-v3/arm-smmu-v3.c`, `MSI_IOVA_BASE`.
    pub const ARM: Self = Self {
        first: 0x0800_0000,
        last: 0x080f_ffff,
        kind: WindowKind::Software,
    };

    /// A window of a kind at any place.
    pub fn new(kind: WindowKind, span: Span<Iova>) -> Self {
        Self {
            first: span.first().0,
            last: span.last().0,
            kind,
        }
    }

    /// Who maps the window.
    pub fn kind(&self) -> WindowKind {
        self.kind
    }

    /// Lowest address.
    pub fn first(&self) -> Iova {
        Iova(self.first)
    }

    /// Highest address, included.
    pub fn last(&self) -> Iova {
        Iova(self.last)
    }

    /// Whether a write to `address` is a message.
    pub fn contains(&self, address: u64) -> bool {
        (self.first..=self.last).contains(&address)
    }

    /// The address that messages are programmed with when one controller
    /// stands behind the window.
    pub fn doorbell(&self) -> Iova {
        Iova(self.first)
    }
}

/// What the doorbells of a set of devices need of a software window.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Need {
    /// Pages of 4 KiB, one for each page that a doorbell stands in.
    pub pages: u64,
    /// The window's alignment in bytes.
    pub alignment: u64,
}

impl Need {
    /// What these doorbells (physical addresses) need.
    pub fn of(doorbells: impl IntoIterator<Item = u64>) -> Self {
        let mut pages: Vec<u64> = doorbells.into_iter().map(|at| at / PAGE).collect();
        pages.sort_unstable();
        pages.dedup();
        Self {
            pages: u64::try_from(pages.len()).unwrap_or(u64::MAX),
            alignment: PAGE,
        }
    }
}

/// No page of the window is left.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the MSI window has no page left for the doorbell at {doorbell:#x}")]
pub struct WindowFull {
    /// The doorbell that has no place.
    pub doorbell: u64,
}

/// Doorbell pages of a software window: given out from its start, page by
/// page, and the same for everybody who asks. Linux
/// `drivers/iommu/iommufd/driver.c`, `iommufd_sw_msi_get_map`.
pub struct Doorbells {
    window: Window,
    /// Physical page numbers in the order of their pages in the window; no
    /// longer than the window.
    pages: Mutex<Vec<u64>>,
}

impl Doorbells {
    /// All pages free.
    pub fn new(window: Window) -> Self {
        Self {
            window,
            pages: Mutex::default(),
        }
    }

    /// The I/O address that reaches the doorbell at physical address
    /// `doorbell`: in the page it has, or in the next free one.
    pub fn place(&self, doorbell: u64) -> Result<Iova, WindowFull> {
        let full = WindowFull { doorbell };
        let page = doorbell / PAGE;
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        let known = pages.iter().position(|known| *known == page);
        let index = known.unwrap_or(pages.len());
        let first = u64::try_from(index)
            .ok()
            .and_then(|index| self.window.first.checked_add(index.checked_mul(PAGE)?))
            .ok_or(full)?;
        let last = first.checked_add(PAGE.saturating_sub(1)).ok_or(full)?;
        if last > self.window.last {
            return Err(full);
        }
        if known.is_none() {
            pages.push(page);
        }
        Ok(Iova(first.saturating_add(doorbell % PAGE)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doorbells_of_one_page_share_a_page_of_the_window() {
        let doorbells = Doorbells::new(Window::ARM);
        assert_eq!(doorbells.place(0x9000_0040), Ok(Iova(0x0800_0040)));
        assert_eq!(doorbells.place(0xa000_0000), Ok(Iova(0x0800_1000)));
        assert_eq!(doorbells.place(0x9000_0044), Ok(Iova(0x0800_0044)));
        let need = Need::of([0x9000_0040, 0xa000_0000, 0x9000_0044]);
        assert_eq!((need.pages, need.alignment), (2, 4096));
    }

    #[test]
    fn a_window_that_is_full_refuses() {
        let span = Span::with_length(Iova(0x1000), 0x1000).unwrap();
        let doorbells = Doorbells::new(Window::new(WindowKind::Software, span));
        assert_eq!(doorbells.place(0x5000), Ok(Iova(0x1000)));
        assert_eq!(
            doorbells.place(0x6000),
            Err(WindowFull { doorbell: 0x6000 })
        );
        assert_eq!(doorbells.place(0x5008), Ok(Iova(0x1008)));
    }
}
