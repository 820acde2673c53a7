//! Tap interfaces: what is written is received by the machine's network, and
//! what the machine sends is read. Linux Documentation/networking/tuntap.rst.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Opens the tap interface `name`, which is made if there is none. An existing
/// one has to be this user's; making one needs CAP_NET_ADMIN in the network
/// namespace.
///
/// # Errors
/// EINVAL for a name that cannot be an interface's; EPERM without the right;
/// EBUSY if somebody has it open; what the open of `/dev/net/tun` says.
pub fn open_tap(name: &str) -> io::Result<File> {
    let mut request = std::mem::MaybeUninit::<libc::ifreq>::zeroed();
    // SAFETY: zeroes are a valid request.
    let request = unsafe { request.assume_init_mut() };
    let room = request.ifr_name.len().saturating_sub(1);
    let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'/' && byte != b'%';
    if name.is_empty() || name.len() > room || !name.bytes().all(plain) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI;
    request.ifr_ifru.ifru_flags = i16::try_from(flags).unwrap_or(0);
    let file = File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    // SAFETY: the kernel reads and writes a `struct ifreq`.
    match unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut *request) } {
        0 => Ok(file),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_no_interface_can_have_is_refused() {
        for name in ["", "a/b", "tap%d", "sixteen-letters!", "a b"] {
            let error = open_tap(name).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EINVAL), "{name}");
        }
    }
}
