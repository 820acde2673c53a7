//! Numbers with a meaning: sizes in bytes, memory addresses, the bounds of
//! both.

const UNITS: [(&str, u32); 14] = [
    ("", 0),
    ("b", 0),
    ("k", 10),
    ("kib", 10),
    ("m", 20),
    ("mib", 20),
    ("g", 30),
    ("gib", 30),
    ("t", 40),
    ("tib", 40),
    ("p", 50),
    ("pib", 50),
    ("e", 60),
    ("eib", 60),
];

/// A size such as `64 MiB`, `64M`, `4096` or `0x1000`; units are powers of
/// 1024. The error says what is wrong with it.
pub(crate) fn size(text: &str) -> Result<u64, &'static str> {
    let text = text.trim();
    if text.starts_with("0x") || text.starts_with("0X") {
        return integer(text);
    }
    let digits = text.find(|c: char| !c.is_ascii_digit());
    let (number, unit) = text
        .split_at_checked(digits.unwrap_or(text.len()))
        .unwrap_or_default();
    let unit = unit.trim_start().to_ascii_lowercase();
    if number.is_empty() {
        return Err("a size starts with a number");
    }
    let Some((_, shift)) = UNITS.iter().find(|(name, _)| *name == unit) else {
        return Err("the units are B, KiB, MiB, GiB, TiB, PiB, EiB");
    };
    let number: u64 = number.parse().map_err(|_| TOO_LARGE)?;
    number.checked_mul(1 << shift).ok_or(TOO_LARGE)
}

const TOO_LARGE: &str = "this is more than 64 bits hold";

/// A number such as `4096` or `0x1000`.
pub(crate) fn integer(text: &str) -> Result<u64, &'static str> {
    let hex = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    digits(hex.unwrap_or(text), if hex.is_some() { 16 } else { 10 })
}

/// Digits of a base, 2-36, without a sign.
pub(crate) fn digits(text: &str, radix: u32) -> Result<u64, &'static str> {
    if text.starts_with('-') {
        return Err("this cannot be negative");
    }
    if text.is_empty() || !text.chars().all(|c| c.is_digit(radix)) {
        return Err("this is no whole number");
    }
    u64::from_str_radix(text, radix).map_err(|_| TOO_LARGE)
}

/// A size as a person would write it: `64 MiB`.
pub(crate) fn display_size(bytes: u64) -> String {
    const NAMES: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let thousands = match bytes {
        0 => 0,
        _ => bytes.trailing_zeros().div_euclid(10),
    };
    let unit = usize::try_from(thousands).ok().and_then(|at| NAMES.get(at));
    let count = bytes.checked_shr(thousands.saturating_mul(10)).unwrap_or(0);
    format!("{count} {}", unit.unwrap_or(&"B"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_powers_of_1024() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("512 B", 512),
            ("4k", 4096),
            ("64M", 64 << 20),
            ("64 MiB", 64 << 20),
            ("1 GiB", 1 << 30),
            ("2T", 2 << 40),
            ("0x1000", 4096),
            ("15 EiB", 15 << 60),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "",
            "M",
            "64MB",
            "-1",
            "1.5G",
            "16 EiB",
            "18446744073709551616",
            "0xg",
            "1 2",
        ] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_shown_in_the_largest_whole_unit() {
        assert_eq!(display_size(64 << 20), "64 MiB");
        assert_eq!(display_size(4096 + 512), "4608 B");
        assert_eq!(display_size(0), "0 B");
        assert_eq!(display_size(1 << 63), "8 EiB");
    }
}
