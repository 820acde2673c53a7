//! What a guest needs: QEMU with its libraries, a kernel, an initramfs made here.

mod forgetful;
mod initramfs;
mod kit;
mod module;

pub(crate) use forgetful::{Forgetful, Kind};
pub(crate) use kit::Kit;
