//! iogate-machine.
