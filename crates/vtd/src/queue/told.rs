//! One trace event for each descriptor, and for each invalidation by registers.

use iogate_dma::{DeviceTlbError, MemoryError};

use crate::ats::DeviceInvalidation;
use crate::invalidate::Invalidation;
use crate::pages::PageResponse;
use crate::remap::InterruptEntries;
use crate::spec::descriptor::Wait;
use crate::spec::registers::QueueErrorInfo;

macro_rules! told {
    ($name:literal, $($fields:tt)*) => {
        tracing::event!(name: $name, target: "iogate", tracing::Level::INFO, $($fields)*)
    };
}

/// An invalidation of what the unit itself caches.
pub(crate) fn tell(invalidation: &Invalidation) {
    use Invalidation as I;
    match *invalidation {
        I::ContextGlobal => told!("vtd_inv_desc_context", range = "all"),
        I::ContextDomain { domain } => told!("vtd_inv_desc_context", domain, range = "domain"),
        I::ContextDevice {
            domain,
            source,
            mask,
        } => told!("vtd_inv_desc_context", %source, mask, domain, range = "device"),
        I::PasidGlobal => told!("vtd_inv_desc_pasid", range = "all"),
        I::PasidDomain { domain } => told!("vtd_inv_desc_pasid", domain, range = "domain"),
        I::PasidSelective { domain, pasid } => {
            let pasid = pasid.as_u32();
            told!("vtd_inv_desc_pasid", domain, pasid, range = "pasid");
        }
        I::IotlbGlobal => told!("vtd_inv_desc_iotlb", range = "all"),
        I::IotlbDomain { domain } => told!("vtd_inv_desc_iotlb", domain, range = "domain"),
        I::IotlbPages {
            domain,
            span,
            leaf_only,
        } => told!("vtd_inv_desc_iotlb", domain, leaf_only, range = %span),
        I::PasidIotlb { domain, pasid } => {
            let pasid = pasid.as_u32();
            told!("vtd_inv_desc_pasid_iotlb", domain, pasid, range = "pasid");
        }
        I::PasidIotlbPages {
            domain,
            pasid,
            span,
            leaf_only,
        } => {
            let pasid = pasid.as_u32();
            told!("vtd_inv_desc_pasid_iotlb", domain, pasid, leaf_only, range = %span);
        }
    }
}

pub(super) fn interrupts(entries: InterruptEntries) {
    match entries {
        InterruptEntries::All => told!("vtd_inv_desc_interrupt", range = "all"),
        InterruptEntries::Selected { index, mask } => {
            told!("vtd_inv_desc_interrupt", index, mask, range = "entries");
        }
    }
}

pub(super) fn device_tlb(invalidation: &DeviceInvalidation, result: Result<(), DeviceTlbError>) {
    let DeviceInvalidation {
        source,
        scope,
        span,
    } = *invalidation;
    let result = match result {
        Ok(()) => "done",
        Err(DeviceTlbError::TimedOut) => "timed out",
        Err(DeviceTlbError::Unexpected) => "unexpected answer",
    };
    told!("vtd_inv_desc_device_tlb", %source, ?scope, range = %span, result);
}

pub(super) fn page_response(response: &PageResponse, known: bool) {
    told!(
        "vtd_inv_desc_page_response",
        source = %response.source,
        group = response.group,
        code = ?response.code,
        result = if known { "done" } else { "nobody asked" },
    );
}

pub(super) fn wait(wait: Wait, address: u64, aborted: bool, written: Result<(), MemoryError>) {
    let result = match (aborted, written) {
        (true, _) => "aborted".to_owned(),
        (false, Ok(())) => "done".to_owned(),
        (false, Err(error)) => error.to_string(),
    };
    told!(
        "vtd_inv_desc_wait",
        address = %format_args!("{address:#x}"),
        data = wait.data(),
        status_write = wait.status_write(),
        interrupt = wait.interrupt(),
        result,
    );
}

pub(super) fn error(head: u32, info: QueueErrorInfo) {
    let result = match info {
        QueueErrorInfo::Tail => "the tail is outside of the queue",
        QueueErrorInfo::Fetch => "the descriptor cannot be read",
        QueueErrorInfo::Type => "unknown type",
        QueueErrorInfo::Reserved => "reserved bits or values",
        QueueErrorInfo::Width => "descriptors too narrow for scalable mode",
        QueueErrorInfo::TailAlignment => "the tail is not aligned",
        QueueErrorInfo::TableMode => "the root table's type is invalid",
    };
    told!("vtd_inv_desc_error", head, result);
}
