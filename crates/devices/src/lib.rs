//! iogate-devices.
