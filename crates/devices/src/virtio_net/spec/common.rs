//! The common configuration and the device status. Virtio 1.2 sections 2.1 and
//! 4.1.4.3.

use bitfield_struct::bitfield;

/// Offsets in the common configuration, in bytes.
pub(crate) mod offset {
    pub(crate) const DEVICE_FEATURE_SELECT: u64 = 0x00;
    pub(crate) const DEVICE_FEATURE: u64 = 0x04;
    pub(crate) const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub(crate) const DRIVER_FEATURE: u64 = 0x0c;
    pub(crate) const CONFIG_MSIX_VECTOR: u64 = 0x10;
    pub(crate) const NUM_QUEUES: u64 = 0x12;
    pub(crate) const DEVICE_STATUS: u64 = 0x14;
    pub(crate) const CONFIG_GENERATION: u64 = 0x15;
    pub(crate) const QUEUE_SELECT: u64 = 0x16;
    pub(crate) const QUEUE_SIZE: u64 = 0x18;
    pub(crate) const QUEUE_MSIX_VECTOR: u64 = 0x1a;
    pub(crate) const QUEUE_ENABLE: u64 = 0x1c;
    pub(crate) const QUEUE_NOTIFY_OFF: u64 = 0x1e;
    pub(crate) const QUEUE_DESC: u64 = 0x20;
    pub(crate) const QUEUE_DRIVER: u64 = 0x28;
    pub(crate) const QUEUE_DEVICE: u64 = 0x30;
}

/// `VIRTIO_MSI_NO_VECTOR`. Virtio 1.2 section 4.1.5.1.2.
pub(crate) const NO_VECTOR: u16 = 0xffff;

/// Device Status (8-bit, RW). Virtio 1.2 section 2.1.
#[bitfield(u8)]
#[derive(PartialEq, Eq)]
pub(crate) struct Status {
    pub(crate) acknowledge: bool,
    pub(crate) driver: bool,
    pub(crate) driver_ok: bool,
    pub(crate) features_ok: bool,
    #[bits(2)]
    __: u8,
    pub(crate) needs_reset: bool,
    pub(crate) failed: bool,
}

/// ISR Status (8-bit, reading clears). Virtio 1.2 section 4.1.4.5.
#[bitfield(u8)]
pub(crate) struct Isr {
    pub(crate) queue: bool,
    pub(crate) configuration: bool,
    #[bits(6)]
    __: u8,
}

/// Feature bits. Virtio 1.2 sections 5.1.3 and 6.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub(crate) struct Features {
    #[bits(5)]
    __: u8,
    pub(crate) mac: bool,
    #[bits(9)]
    __: u16,
    /// One packet may take several receive buffers.
    pub(crate) mrg_rxbuf: bool,
    pub(crate) status: bool,
    pub(crate) ctrl_vq: bool,
    pub(crate) ctrl_rx: bool,
    #[bits(3)]
    __: u8,
    pub(crate) mq: bool,
    #[bits(5)]
    __: u8,
    pub(crate) indirect_desc: bool,
    pub(crate) event_idx: bool,
    #[bits(2)]
    __: u8,
    pub(crate) version_1: bool,
    pub(crate) access_platform: bool,
    #[bits(3)]
    __: u8,
    /// A physical function offers it. Virtio 1.2 section 6.
    pub(crate) sr_iov: bool,
    #[bits(26)]
    __: u32,
}
