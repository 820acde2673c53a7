//! iogate-space.
