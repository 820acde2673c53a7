//! iogate-checker.
