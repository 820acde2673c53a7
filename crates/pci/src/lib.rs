//! iogate-pci.
