//! iogate-memory.
