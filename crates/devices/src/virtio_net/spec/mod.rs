//! Structures of a virtio network device, by the names of "Virtual I/O Device
//! (VIRTIO) Version 1.2".

pub(super) mod common;
pub(super) mod network;
pub(super) mod pci;
pub(super) mod ring;
