//! iogate-sysfs.
