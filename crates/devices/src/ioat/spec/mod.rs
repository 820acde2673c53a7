//! Structures of the DMA engine, by the names of Intel's datasheet "Xeon
//! Processor E5-1600/2400/2600/4600 Product Families, Volume Two: Registers",
//! Intel QuickData Technology: registers in BAR 0, and descriptors in memory.

pub(super) mod descriptor;
pub(super) mod registers;
