//! Which QEMU a program is.

use std::ffi::OsString;
use std::process::{Command, Stdio};

use crate::session::Refusal;

/// The first version that has `vfio-user-pci`.
const NEEDED: (u32, u32) = (10, 1);

/// Asks the program for its version; refuses one that is too old, or none.
pub(crate) fn check(program: &OsString) -> Result<(), Refusal> {
    let name = program.to_string_lossy();
    let asked = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .output();
    let output = asked.map_err(|error| Refusal(format!("{name}: {error}")))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let Some((version, shown)) = find(&text) else {
        return Err(Refusal(format!(
            "{name} --version does not say that it is QEMU"
        )));
    };
    if version < NEEDED {
        let (major, minor) = NEEDED;
        return Err(Refusal(format!(
            "{name} is QEMU {shown}: devices over vfio-user need {major}.{minor} or later"
        )));
    }
    Ok(())
}

/// Major and minor number, and the whole version as it is written.
fn find(text: &str) -> Option<((u32, u32), &str)> {
    let (_, rest) = text.split_once("QEMU emulator version ")?;
    let shown = rest.split_whitespace().next()?;
    let mut numbers = shown.split('.').map(|number| number.parse().ok());
    Some(((numbers.next()??, numbers.next()??), shown))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_qemu_says() {
        let debian = "QEMU emulator version 11.1.3 (Debian 1:11.1.3+ds-1~bpo13+1)\nCopyright";
        assert_eq!(find(debian), Some(((11, 1), "11.1.3")));
        assert_eq!(
            find("QEMU emulator version 7.2.22"),
            Some(((7, 2), "7.2.22"))
        );
        assert_eq!(find("QEMU emulator version ten"), None);
        assert_eq!(find("cat (GNU coreutils) 9.1"), None);
    }
}
