//! Structures in a guest's memory, and what becomes of requests.

mod cached;
mod entries;
mod follow;
mod ports;
mod stages;
mod told;
pub(crate) mod world;
