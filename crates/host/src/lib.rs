//! iogate-host.
