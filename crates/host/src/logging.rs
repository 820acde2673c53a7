//! A device's log of its writes: VFIO_DEVICE_FEATURE_DMA_LOGGING. Linux
//! `drivers/vfio/vfio_main.c`, `vfio_ioctl_device_feature_logging_start` and
//! following, and where a driver decides `drivers/vfio/pci/mlx5/cmd.c`.

use std::sync::Arc;

use iogate_dma::{Iova, Span, WriteLog};

use crate::{Error, ErrorKind, Host, Retired};

/// Ranges of one log at most: as many as fit into a page.
pub const LOG_RANGES: u32 = 256;

impl Host {
    /// DMA_LOGGING_START, after its arguments were taken: `ranges` are IOVA
    /// and length. ENOTTY for a device that keeps no log; EINVAL for a range
    /// that is not of whole pages or overlaps one before, EOVERFLOW for one
    /// that wraps, in the order of the ranges; EINVAL for a second log. The
    /// pages of the log have [`WriteLog::PAGE`] bytes.
    pub fn log_start(
        &self,
        device: usize,
        page_size: u64,
        ranges: &[(u64, u64)],
    ) -> Result<Retired, Error> {
        let spans = self.log_check(page_size, ranges)?;
        let slot = self.slot(device)?;
        let mut state = slot.lock();
        if state.logging.is_some() {
            return Err(Error::invalid("the device keeps a log already"));
        }
        let log = Arc::new(WriteLog::new(spans));
        state.logging = Some(Arc::clone(&log));
        slot.device.attachment.set_log(Some(log));
        Ok(Retired {
            // A write that began before might not be in it.
            grace: Some(self.config.gate.grace()),
            ..Retired::default()
        })
    }

    /// What is wrong with the first of `ranges` that is wrong, as
    /// [`log_start`](Self::log_start) says; else the ranges.
    pub fn log_check(&self, page_size: u64, ranges: &[(u64, u64)]) -> Result<Vec<Span>, Error> {
        let mut spans: Vec<Span> = Vec::with_capacity(ranges.len());
        for &(iova, length) in ranges {
            let unaligned = page_size.wrapping_sub(1);
            if iova & unaligned != 0 || length & unaligned != 0 {
                return Err(Error::invalid("a range is not of whole pages"));
            }
            if iova.checked_add(length).is_none() {
                return Err(WRAPS);
            }
            // An empty range is none.
            let Some(span) = Span::with_length(Iova(iova), length) else {
                continue;
            };
            let meets = |other: &Span| span.first() <= other.last() && other.first() <= span.last();
            if spans.iter().any(meets) {
                return Err(Error::invalid("two ranges overlap"));
            }
            spans.push(span);
        }
        Ok(spans)
    }

    /// DMA_LOGGING_STOP. Without a log nothing happens.
    /// `mlx5vf_stop_page_tracker`.
    pub fn log_stop(&self, device: usize) -> Result<(), Error> {
        let slot = self.slot(device)?;
        let mut state = slot.lock();
        state.logging = None;
        slot.device.attachment.set_log(None);
        Ok(())
    }

    /// DMA_LOGGING_REPORT: says which pages of the range were written, and
    /// forgets them. EINVAL for pages of less than 4 KiB or of a size that is
    /// no power of two; EOVERFLOW for a range that wraps; EINVAL without a
    /// log. `mlx5vf_tracker_read_and_clear`.
    pub fn log_report(
        &self,
        device: usize,
        page_size: u64,
        iova: u64,
        length: u64,
        written: impl FnMut(Span),
    ) -> Result<(), Error> {
        if page_size < 4096 || !page_size.is_power_of_two() {
            return Err(Error::invalid("no such page size"));
        }
        if iova.checked_add(length).is_none() {
            return Err(WRAPS);
        }
        let log = self.slot(device)?.lock().logging.clone();
        let log = log.ok_or(Error::invalid("the device keeps no log"))?;
        if let Some(span) = Span::with_length(Iova(iova), length) {
            log.take(span).into_iter().for_each(written);
        }
        Ok(())
    }
}

const WRAPS: Error = Error::new(
    ErrorKind::Overflow,
    "the range passes the top of the address space",
);
