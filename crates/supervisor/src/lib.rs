//! iogate-supervisor.
