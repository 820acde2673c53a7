//! Eventfds that the client signals and the host acts on.

/// What a client's eventfd stands for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Event {
    /// A register write set up by VFIO_DEVICE_IOEVENTFD.
    Write {
        /// Index of the device.
        device: usize,
        /// Which of its ioeventfds.
        slot: u64,
    },
    /// INTx of the device is to be unmasked (DATA_EVENTFD | ACTION_UNMASK).
    Unmask {
        /// Index of the device.
        device: usize,
    },
}

/// An eventfd is being watched; dropping this ends it.
pub trait Watch: Send + Sync {}
