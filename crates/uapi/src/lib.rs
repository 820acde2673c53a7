//! iogate-uapi.
