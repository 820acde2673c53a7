//! iogate-passthrough.
