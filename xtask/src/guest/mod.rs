//! What a guest needs: QEMU with its libraries, a kernel, an initramfs made here.

mod initramfs;
mod kit;
mod module;

pub(crate) use kit::Kit;
