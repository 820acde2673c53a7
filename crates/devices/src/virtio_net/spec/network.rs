//! The network device. Virtio 1.2 section 5.1.

/// Bytes of `virtio_net_hdr` with `num_buffers`. Virtio 1.2 section 5.1.6.
pub(crate) const HEADER: usize = 12;
/// Where `num_buffers` stands in it.
pub(crate) const NUM_BUFFERS: usize = 10;

/// Offsets in the device configuration, in bytes. Virtio 1.2 section 5.1.4.
pub(crate) mod offset {
    pub(crate) const MAC: u64 = 0x00;
    pub(crate) const STATUS: u64 = 0x06;
    pub(crate) const MAX_VIRTQUEUE_PAIRS: u64 = 0x08;
}

/// `VIRTIO_NET_S_LINK_UP`.
pub(crate) const LINK_UP: u16 = 1;

/// Commands of the control queue: class, command. Virtio 1.2 section 5.1.6.5.
pub(crate) mod control {
    pub(crate) const OK: u8 = 0;
    pub(crate) const ERROR: u8 = 1;
    /// `VIRTIO_NET_CTRL_RX`: PROMISC and ALLMULTI.
    pub(crate) const RX: u8 = 0;
    /// `VIRTIO_NET_CTRL_MAC`.
    pub(crate) const MAC: u8 = 1;
    pub(crate) const MAC_TABLE_SET: u8 = 0;
    /// `VIRTIO_NET_CTRL_MQ`.
    pub(crate) const MQ: u8 = 4;
    pub(crate) const VQ_PAIRS_SET: u8 = 0;
}
