//! Writes to files in `/sys` that configure virtual functions. Linux
//! `drivers/pci/iov.c`.

use iogate_host::Host;

use crate::trace::Told;
use crate::{After, Answer, Errno};

/// A file whose writes do something, of the physical function with this index
/// among the host's devices.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Attribute {
    /// `sriov_numvfs`.
    NumVfs {
        /// The physical function.
        device: usize,
    },
    /// `sriov_drivers_autoprobe`.
    DriversAutoprobe {
        /// The physical function.
        device: usize,
    },
}

/// What a write came to.
#[derive(Default)]
pub struct Stored {
    /// The device that is still open and that the write waits for: it goes on
    /// when it is stored again.
    pub waits_for: Option<usize>,
    /// What is left to be done before the program hears of it.
    pub after: After,
}

/// A write of `text` to an attribute. EINVAL for what is no value; else as
/// [`Host::set_virtual_functions`]. `sriov_numvfs_store`,
/// `sriov_drivers_autoprobe_store`.
pub fn store_attribute(host: &Host, attribute: Attribute, text: &[u8]) -> Result<Stored, Errno> {
    let run = || match attribute {
        Attribute::NumVfs { device } => {
            let count = number(text).ok_or(Errno::EINVAL)?;
            let configured = host.set_virtual_functions(device, count)?;
            Ok(Stored {
                waits_for: configured.waits_for,
                after: configured.retired.into(),
            })
        }
        Attribute::DriversAutoprobe { device } => {
            host.set_autoprobes(device, boolean(text).ok_or(Errno::EINVAL)?);
            Ok(Stored::default())
        }
    };
    let (Attribute::NumVfs { device } | Attribute::DriversAutoprobe { device }) = attribute;
    let stored = run();
    let waits_for = stored.as_ref().ok().and_then(|stored| stored.waits_for);
    let name = |device: usize| host.device(device).ok().map(|device| device.name.clone());
    tracing::event!(
        name: "sysfs_write",
        target: "iogate",
        tracing::Level::INFO,
        attribute = match attribute {
            Attribute::NumVfs { .. } => "sriov_numvfs",
            Attribute::DriversAutoprobe { .. } => "sriov_drivers_autoprobe",
        },
        device = name(device),
        value = %text.trim_ascii_end().escape_ascii(),
        waits_for = waits_for.and_then(name),
        result = %Told(&stored.as_ref().map(|_| Answer::value(0)).map_err(|errno| *errno)),
    );
    stored
}

/// A number of 16 bits as in C, with at most a line feed after it.
/// `kstrtou16` with base 0.
fn number(text: &[u8]) -> Option<u16> {
    let text = text.strip_prefix(b"+").unwrap_or(text);
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    let (digits, radix) = match text {
        [b'0', b'x' | b'X', digits @ ..] => (digits, 16),
        [b'0', digits @ ..] if !digits.is_empty() => (digits, 8),
        digits => (digits, 10),
    };
    let digits = std::str::from_utf8(digits).ok()?;
    let plain = digits.bytes().all(|digit| digit.is_ascii_alphanumeric());
    u16::from_str_radix(digits, radix).ok().filter(|_| plain)
}

/// Yes or no. `kstrtobool`.
fn boolean(text: &[u8]) -> Option<bool> {
    match text {
        [b'y' | b'Y' | b't' | b'T' | b'1' | b'e' | b'E', ..] => Some(true),
        [b'n' | b'N' | b'f' | b'F' | b'0' | b'd' | b'D', ..] => Some(false),
        [b'o' | b'O', b'n' | b'N', ..] => Some(true),
        [b'o' | b'O', b'f' | b'F', ..] => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_c_in_16_bits_with_one_line_feed() {
        for (text, value) in [
            ("4", Some(4)),
            ("4\n", Some(4)),
            ("+4", Some(4)),
            ("0", Some(0)),
            ("0x10\n", Some(16)),
            ("010", Some(8)),
            ("65535", Some(65535)),
            ("65536", None),
            ("", None),
            ("\n", None),
            ("4\n\n", None),
            ("4 ", None),
            ("-1", None),
            ("0x", None),
            ("++4", None),
            ("four", None),
        ] {
            assert_eq!(number(text.as_bytes()), value, "{text:?}");
        }
    }

    #[test]
    fn booleans_are_known_by_how_they_begin() {
        for (text, value) in [
            ("1\n", Some(true)),
            ("on", Some(true)),
            ("Yes", Some(true)),
            ("0", Some(false)),
            ("off\n", Some(false)),
            ("x", None),
            ("", None),
            ("o", None),
        ] {
            assert_eq!(boolean(text.as_bytes()), value, "{text:?}");
        }
    }
}
