//! iogate-dma.
