//! QEMU: what it is told besides what the user tells it, and what of the user's
//! arguments has to be known for that.

mod arguments;
mod version;

use std::ffi::OsString;
use std::path::Path;

use serde_json::json;

use super::machine::Running;
use crate::session::Refusal;

pub(crate) use arguments::User;
pub(crate) use version::check;

/// The memory object that is added.
const MEMORY: &str = "iogate-ram";

/// The arguments that add the machine's functions and share the guest's memory;
/// they go before the user's own.
pub(crate) fn additions(user: &User, running: &Running) -> Result<Vec<OsString>, Refusal> {
    let mut arguments = Vec::new();
    let mut add = |option: &str, value: String| {
        arguments.push(OsString::from(option));
        arguments.push(OsString::from(value));
    };
    if !user.names_machine() {
        // Of QEMU's machines this one has PCI Express.
        add("-machine", "q35".to_owned());
    }
    if !user.shares_memory()? {
        let size = user.memory()?;
        let object = format!("memory-backend-memfd,id={MEMORY},size={size},share=on");
        add("-object", object);
        add("-machine", format!("memory-backend={MEMORY}"));
    }
    for socket in &running.sockets {
        let at = socket.at;
        let mut others = running.sockets.iter();
        let is_one_of_several =
            others.any(|other| other.at.device() == at.device() && other.at != at);
        let mut device = json!({
            "driver": "vfio-user-pci",
            "id": format!("iogate-{}", socket.name),
            "addr": format!("{:02x}.{}", at.device(), at.function()),
            "socket": { "type": "unix", "path": text(&socket.path)? },
        });
        if is_one_of_several && at.function() == 0 {
            device["multifunction"] = json!(true);
        }
        add("-device", device.to_string());
    }
    Ok(arguments)
}

/// The argument by which QEMU takes the ACPI table at `path`.
pub(crate) fn table(path: &Path) -> Result<[OsString; 2], Refusal> {
    // A comma in a value is written twice.
    let path = text(path)?.replace(',', ",,");
    Ok(["-acpitable".into(), format!("file={path}").into()])
}

fn text(path: &Path) -> Result<&str, Refusal> {
    let refused = || Refusal(format!("{} is no UTF-8 text", path.display()));
    path.to_str().ok_or_else(refused)
}

/// A command line as a shell takes it.
pub(crate) fn quoted(arguments: &[OsString]) -> String {
    let words = arguments.iter().map(|word| {
        let word = word.to_string_lossy();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:+%@".contains(c);
        match !word.is_empty() && word.chars().all(plain) {
            true => word.into_owned(),
            false => format!("'{}'", word.replace('\'', r"'\''")),
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_back_what_is_quoted() {
        let words = ["", "a b", "it's", "{\"x\":\"$y\"}", "-m", "`date`\n", "ü"];
        let line = quoted(&words.map(OsString::from));
        let printed = std::process::Command::new("sh")
            .args(["-c", &format!("printf '%s\\0' {line}")])
            .output()
            .unwrap();
        let back: Vec<_> = printed.stdout.split(|byte| *byte == 0).collect();
        let expected = words.iter().map(|word| word.as_bytes()).chain([&b""[..]]);
        assert_eq!(back, expected.collect::<Vec<_>>());
    }
}
