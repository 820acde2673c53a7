//! iogate-interrupt.
