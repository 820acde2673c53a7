//! The features of VFIO_DEVICE_FEATURE that log what a device writes. Linux
//! `drivers/vfio/vfio_main.c` and `drivers/iommu/iommufd/iova_bitmap.c`.

use iogate_dma::{Span, WriteLog};
use iogate_host::LOG_RANGES;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use super::Call;
use super::argument::read_value;
use super::feature::{FEATURE, Feature};
use crate::{Answer, Client, Errno};

/// `struct vfio_device_feature_dma_logging_control`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Control {
    page_size: u64,
    num_ranges: u32,
    reserved: u32,
    ranges: u64,
}

/// `struct vfio_device_feature_dma_logging_range`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Range {
    iova: u64,
    length: u64,
}

/// `struct vfio_device_feature_dma_logging_report`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct Report {
    iova: u64,
    length: u64,
    page_size: u64,
    bitmap: u64,
}

/// VFIO_DEVICE_FEATURE_DMA_LOGGING_START: EINVAL for no ranges, E2BIG for more
/// than fit into a page, EFAULT. `vfio_ioctl_device_feature_logging_start`.
pub(super) fn start(call: &Call<'_>, device: usize, body: &Feature) -> Result<Answer, Errno> {
    call.host.migration_check(device)?;
    if !body.is_set(size_of::<Control>())? {
        return Ok(Answer::value(0));
    }
    let at = call.at(FEATURE)?;
    let mut control = Control::new_zeroed();
    call.client.read(at, control.as_mut_bytes())?;
    if control.num_ranges == 0 {
        return Err(Errno::EINVAL);
    }
    if control.num_ranges > LOG_RANGES {
        return Err(Errno::E2BIG);
    }
    let mut ranges = Vec::new();
    for number in 0..u64::from(control.num_ranges) {
        let offset = number
            .checked_mul(16)
            .and_then(|at| control.ranges.checked_add(at));
        let read = match offset {
            Some(at) => read_value(call.client, at),
            None => Err(Errno::EFAULT),
        };
        let range = read
            .and_then(|bytes: [u8; 16]| Range::read_from_bytes(&bytes).map_err(|_| Errno::EFAULT));
        match range {
            Ok(Range { iova, length }) => ranges.push((iova, length)),
            Err(errno) => {
                // What is wrong with those before comes first.
                call.host.log_check(control.page_size, &ranges)?;
                return Err(errno);
            }
        }
    }
    let retired = call.host.log_start(device, control.page_size, &ranges)?;
    control.page_size = WriteLog::PAGE;
    if let Err(error) = call.client.write(at, control.as_bytes()) {
        call.host.log_stop(device)?;
        return Ok(Answer::failed(error.into(), retired.into()));
    }
    Ok(retired.into())
}

/// VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP.
pub(super) fn stop(call: &Call<'_>, device: usize, body: &Feature) -> Result<Answer, Errno> {
    call.host.migration_check(device)?;
    if body.is_set(0)? {
        call.host.log_stop(device)?;
    }
    Ok(Answer::value(0))
}

/// VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT: bits are set in the program's
/// bitmap, never cleared; what cannot be set there is lost without an error.
/// `vfio_ioctl_device_feature_logging_report`, `iova_bitmap_set`.
pub(super) fn report(call: &Call<'_>, device: usize, body: &Feature) -> Result<Answer, Errno> {
    call.host.migration_check(device)?;
    if !body.is_got(size_of::<Report>())? {
        return Ok(Answer::value(0));
    }
    let mut report = Report::new_zeroed();
    call.client.read(call.at(FEATURE)?, report.as_mut_bytes())?;
    let mut bitmap = Bitmap::new(call.client, &report);
    let Report {
        iova,
        length,
        page_size,
        ..
    } = report;
    call.host
        .log_report(device, page_size, iova, length, |span| bitmap.set(span))?;
    bitmap.flush();
    Ok(Answer::value(0))
}

/// A client's bitmap, of which some bytes at a time are here.
struct Bitmap<'c> {
    client: &'c dyn Client,
    report: Report,
    /// The first bit's byte of those that are here.
    first: u64,
    held: [u8; 64],
    changed: bool,
}

impl<'c> Bitmap<'c> {
    fn new(client: &'c dyn Client, report: &Report) -> Self {
        Self {
            client,
            report: *report,
            first: u64::MAX,
            held: [0; 64],
            changed: false,
        }
    }

    /// Sets the bits of all pages that `span` touches, within the range.
    fn set(&mut self, span: Span) {
        let Report {
            iova,
            length,
            page_size,
            ..
        } = self.report;
        let bit = |at: u64| at.saturating_sub(iova).checked_div(page_size).unwrap_or(0);
        let end = iova.saturating_add(length.saturating_sub(1));
        let (from, to) = (bit(span.first().0), bit(span.last().0.min(end)));
        let mut bit = from;
        while bit <= to {
            let Some(at) = self.bring(bit / 8) else {
                return;
            };
            // As much of the byte as the span has.
            let last = (bit | 7).min(to);
            let mask = 0xff_u8.wrapping_shl(u32::try_from(bit & 7).unwrap_or(0));
            let upper = 7_u64.wrapping_sub(last & 7);
            let mask = mask & 0xff_u8.wrapping_shr(u32::try_from(upper).unwrap_or(0));
            if let Some(byte) = self.held.get_mut(at) {
                *byte |= mask;
                self.changed = true;
            }
            bit = last.saturating_add(1);
        }
    }

    /// Where a byte is among those that are here; `None` if the client has no
    /// such byte.
    fn bring(&mut self, byte: u64) -> Option<usize> {
        let first = byte & !63;
        if first != self.first {
            self.flush();
            self.first = u64::MAX;
            self.held = [0; 64];
            // Only up to the end of the bitmap.
            let address = self.report.bitmap.checked_add(first)?;
            let length = self.bytes_at(first);
            let held = self.held.get_mut(..length)?;
            self.client.read(address, held).ok()?;
            self.first = first;
        }
        usize::try_from(byte & 63).ok()
    }

    /// How many bytes the bitmap has from `first` on, of those held at a time.
    fn bytes_at(&self, first: u64) -> usize {
        let bits = self.report.length.div_ceil(self.report.page_size);
        let left = bits.div_ceil(8).saturating_sub(first);
        usize::try_from(left).unwrap_or(usize::MAX).min(64)
    }

    fn flush(&mut self) {
        let length = match self.first {
            u64::MAX => 0,
            first => self.bytes_at(first),
        };
        if std::mem::take(&mut self.changed)
            && let Some(held) = self.held.get(..length)
        {
            // The kernel drops what cannot be written, too.
            let _ = self
                .client
                .write(self.report.bitmap.wrapping_add(self.first), held);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iommufd::same_layout;
    use vfio_bindings::bindings::vfio as bindings;

    #[test]
    fn structures_are_laid_out_as_the_kernels() {
        same_layout!(Control, bindings::vfio_device_feature_dma_logging_control, {
            page_size: page_size, num_ranges: num_ranges, reserved: __reserved, ranges: ranges,
        });
        same_layout!(Range, bindings::vfio_device_feature_dma_logging_range, {
            iova: iova, length: length,
        });
        same_layout!(Report, bindings::vfio_device_feature_dma_logging_report, {
            iova: iova, length: length, page_size: page_size, bitmap: bitmap,
        });
        // Ranges of one page.
        assert_eq!(LOG_RANGES as usize * size_of::<Range>(), 4096);
    }
}
