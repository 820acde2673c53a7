//! From the bits of a descriptor to what it asks for, or what is wrong with
//! it. VT-d 4.1 sections 6.5.2.1 to 6.5.2.8.

use iogate_dma::{Pasid, RequesterId, Source, TlbScope};

use crate::Capabilities;
use crate::ats::DeviceInvalidation;
use crate::capabilities::MAX_ADDRESS_MASK;
use crate::invalidate::Invalidation;
use crate::pages::{PageResponse, ResponseCode};
use crate::registers::{function_bits, pages};
use crate::remap::InterruptEntries;
use crate::spec::descriptor::{
    self, Context, DevicePages, DeviceTlb, Header, Interrupt, Iotlb, PageResponseGroup, Pages,
    PasidCache, PasidDevicePages, PasidDeviceTlb, PasidIotlb, Wait, device_mask, kind,
};
use crate::spec::registers::{Granularity, QueueErrorInfo};

/// What a descriptor asks for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Descriptor {
    Invalidate(Invalidation),
    Interrupts(InterruptEntries),
    DeviceTlb(DeviceInvalidation),
    Wait { wait: Wait, address: u64 },
    Respond(PageResponse),
}

/// The reserved bits of the two low words of each type; Type[6:4] is looked at
/// before. The two high words of wide descriptors are reserved in all of them.
const CONTEXT: [u64; 2] = [0xfffc_0000_0000_f1c0, u64::MAX];
const IOTLB: [u64; 2] = [0xffff_ffff_0000_f100, 0xf80];
const DEVICE_TLB: [u64; 2] = [0x000f_0000_ffe0_01f0, 0xffe];
const INTERRUPT: [u64; 2] = [0xffff_0000_07ff_f1e0, u64::MAX];
const WAIT: [u64; 2] = [0xffff_f100, 3];
const PASID_IOTLB: [u64; 2] = [0xfff0_0000_0000_f1c0, 0xf80];
const PASID_CACHE: [u64; 2] = [0xfff0_0000_0000_f1c0, u64::MAX];
const PASID_DEVICE_TLB: [u64; 2] = [0, 0x7fe];
const PAGE_RESPONSE: [u64; 2] = [0xfff0_0000_0000_01e0, !0xffc];

/// Reads a descriptor; `words` beyond its width are zero.
pub(super) fn decode(
    words: [u64; 4],
    capabilities: &Capabilities,
) -> Result<Descriptor, QueueErrorInfo> {
    let [low, high, third, fourth] = words;
    let header = Header::from_bits(low);
    if header.high() != 0 {
        return Err(QueueErrorInfo::Type);
    }
    let scalable = capabilities.is_scalable();
    let (known, reserved) = match header.low() {
        kind::CONTEXT => (true, CONTEXT),
        kind::IOTLB => (true, IOTLB),
        kind::DEVICE_TLB => (capabilities.has_device_tlb(), DEVICE_TLB),
        kind::INTERRUPT => (capabilities.has_interrupt_remapping(), INTERRUPT),
        kind::WAIT => (true, WAIT),
        kind::PASID_IOTLB => (scalable, PASID_IOTLB),
        kind::PASID_CACHE => (scalable, PASID_CACHE),
        kind::PASID_DEVICE_TLB => (scalable && capabilities.has_device_tlb(), PASID_DEVICE_TLB),
        kind::PAGE_RESPONSE => (capabilities.has_page_requests(), PAGE_RESPONSE),
        _ => (false, [0; 2]),
    };
    if !known {
        return Err(QueueErrorInfo::Type);
    }
    if low & reserved[0] != 0 || high & reserved[1] != 0 || third | fourth != 0 {
        return Err(QueueErrorInfo::Reserved);
    }
    match header.low() {
        kind::CONTEXT => context(Context::from_bits(low)).map(Descriptor::Invalidate),
        kind::IOTLB => iotlb(Iotlb::from_bits(low), high).map(Descriptor::Invalidate),
        kind::DEVICE_TLB => Ok(Descriptor::DeviceTlb(device_tlb(
            DeviceTlb::from_bits(low),
            DevicePages::from_bits(high),
        ))),
        kind::INTERRUPT => Ok(Descriptor::Interrupts(interrupts(Interrupt::from_bits(
            low,
        )))),
        kind::WAIT => {
            let wait = Wait::from_bits(low);
            if wait.drain_page_requests() && !capabilities.has_page_requests() {
                return Err(QueueErrorInfo::Reserved);
            }
            Ok(Descriptor::Wait {
                wait,
                address: high,
            })
        }
        kind::PASID_IOTLB => {
            pasid_iotlb(PasidIotlb::from_bits(low), high).map(Descriptor::Invalidate)
        }
        kind::PASID_CACHE => pasid_cache(PasidCache::from_bits(low)).map(Descriptor::Invalidate),
        kind::PASID_DEVICE_TLB => {
            let range = PasidDevicePages::from_bits(high);
            pasid_device_tlb(PasidDeviceTlb::from_bits(low), range).map(Descriptor::DeviceTlb)
        }
        _ => page_response(
            descriptor::PageResponse::from_bits(low),
            PageResponseGroup::from_bits(high),
        )
        .map(Descriptor::Respond),
    }
}

fn context(descriptor: Context) -> Result<Invalidation, QueueErrorInfo> {
    let domain = descriptor.domain();
    Ok(match descriptor.granularity() {
        Granularity::Reserved => return Err(QueueErrorInfo::Reserved),
        Granularity::Global => Invalidation::ContextGlobal,
        Granularity::Domain => Invalidation::ContextDomain { domain },
        Granularity::Selective => Invalidation::ContextDevice {
            domain,
            source: RequesterId(descriptor.source()),
            mask: function_bits(descriptor.function_mask()),
        },
    })
}

fn iotlb(descriptor: Iotlb, high: u64) -> Result<Invalidation, QueueErrorInfo> {
    let domain = descriptor.domain();
    let range = Pages::from_bits(high);
    Ok(match descriptor.granularity() {
        Granularity::Reserved => return Err(QueueErrorInfo::Reserved),
        Granularity::Global => Invalidation::IotlbGlobal,
        Granularity::Domain => Invalidation::IotlbDomain { domain },
        Granularity::Selective if range.mask() > MAX_ADDRESS_MASK => {
            return Err(QueueErrorInfo::Reserved);
        }
        Granularity::Selective => Invalidation::IotlbPages {
            domain,
            span: pages(range.page(), range.mask()),
            leaf_only: range.leaf_only(),
        },
    })
}

fn pasid(raw: u32) -> Result<Pasid, QueueErrorInfo> {
    Pasid::new(raw).ok_or(QueueErrorInfo::Reserved)
}

fn pasid_cache(descriptor: PasidCache) -> Result<Invalidation, QueueErrorInfo> {
    let domain = descriptor.domain();
    Ok(match descriptor.granularity() {
        0 => Invalidation::PasidDomain { domain },
        1 => Invalidation::PasidSelective {
            domain,
            pasid: pasid(descriptor.pasid())?,
        },
        3 => Invalidation::PasidGlobal,
        _ => return Err(QueueErrorInfo::Reserved),
    })
}

fn pasid_iotlb(descriptor: PasidIotlb, high: u64) -> Result<Invalidation, QueueErrorInfo> {
    let domain = descriptor.domain();
    let pasid = pasid(descriptor.pasid())?;
    let range = Pages::from_bits(high);
    Ok(match descriptor.granularity() {
        2 => Invalidation::PasidIotlb { domain, pasid },
        // MAMV does not bound this one. Section 11.4.2.
        3 => Invalidation::PasidIotlbPages {
            domain,
            pasid,
            span: pages(range.page(), range.mask()),
            leaf_only: range.leaf_only(),
        },
        _ => return Err(QueueErrorInfo::Reserved),
    })
}

fn device_tlb(descriptor: DeviceTlb, range: DevicePages) -> DeviceInvalidation {
    DeviceInvalidation {
        source: RequesterId(descriptor.source()),
        scope: TlbScope::WithoutPasid,
        span: pages(range.page(), device_mask(range.page(), range.sized())),
    }
}

fn pasid_device_tlb(
    descriptor: PasidDeviceTlb,
    range: PasidDevicePages,
) -> Result<DeviceInvalidation, QueueErrorInfo> {
    Ok(DeviceInvalidation {
        source: RequesterId(descriptor.source()),
        scope: match range.global() {
            true => TlbScope::EveryPasid,
            false => TlbScope::Pasid(pasid(descriptor.pasid())?),
        },
        span: pages(range.page(), device_mask(range.page(), range.sized())),
    })
}

fn page_response(
    descriptor: descriptor::PageResponse,
    group: PageResponseGroup,
) -> Result<PageResponse, QueueErrorInfo> {
    let pasid = match descriptor.pasid_present() {
        true => Some(pasid(descriptor.pasid())?),
        false => None,
    };
    Ok(PageResponse {
        source: Source {
            pasid,
            ..RequesterId(descriptor.source()).into()
        },
        group: group.group(),
        code: ResponseCode::from_bits(descriptor.code()),
    })
}

fn interrupts(descriptor: Interrupt) -> InterruptEntries {
    if descriptor.selective() {
        InterruptEntries::Selected {
            index: descriptor.index(),
            mask: descriptor.mask(),
        }
    } else {
        InterruptEntries::All
    }
}
