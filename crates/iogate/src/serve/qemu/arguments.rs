//! The user's own arguments: only what decides about memory and the machine is
//! read, all of it is passed on.

use std::ffi::OsString;

use crate::session::Refusal;

/// What QEMU has where nobody says how much memory: 128 MiB.
const DEFAULT_MEMORY: u64 = 128 << 20;

/// Options of QEMU that take no value. All others take one.
const PLAIN: [&str; 24] = [
    "S",
    "s",
    "nographic",
    "nodefaults",
    "no-user-config",
    "snapshot",
    "no-reboot",
    "no-shutdown",
    "enable-kvm",
    "daemonize",
    "full-screen",
    "usb",
    "version",
    "h",
    "help",
    "no-fd-bootchk",
    "mem-prealloc",
    "only-migratable",
    "preconfig",
    "no-acpi",
    "no-hpet",
    "win2k-hack",
    "one-insn-per-tb",
    "async-teardown",
];

/// The user's arguments.
pub(crate) struct User {
    words: Vec<OsString>,
    /// Options without their dashes, with their values.
    options: Vec<(String, String)>,
}

impl User {
    pub(crate) fn new(words: &[OsString]) -> Self {
        let mut options = Vec::new();
        let mut rest = words.iter();
        while let Some(word) = rest.next() {
            let word = word.to_string_lossy();
            let Some(name) = word.strip_prefix('-') else {
                continue;
            };
            let name = name.strip_prefix('-').unwrap_or(name).to_owned();
            let value = match PLAIN.contains(&name.as_str()) {
                true => None,
                false => rest.next(),
            };
            let value = value.map(|value| value.to_string_lossy().into_owned());
            options.push((name, value.unwrap_or_default()));
        }
        Self {
            words: words.to_vec(),
            options,
        }
    }

    /// The arguments as they were given.
    pub(crate) fn words(&self) -> &[OsString] {
        &self.words
    }

    fn values<'u>(&'u self, names: &'u [&str]) -> impl Iterator<Item = &'u str> {
        let options = self.options.iter();
        let named = options.filter(|(name, _)| names.contains(&name.as_str()));
        named.map(|(_, value)| value.as_str())
    }

    fn has(&self, name: &str) -> bool {
        self.options.iter().any(|(option, _)| option == name)
    }

    /// The value of `key` in the `-machine` options; the last counts.
    fn machine(&self, key: &str) -> Option<&str> {
        let values = self.values(&["machine", "M"]);
        let parts = values.flat_map(|value| value.split(','));
        let found = parts.filter_map(|part| part.split_once('=').filter(|(k, _)| *k == key));
        found.map(|(_, value)| value).last()
    }

    /// Whether a type of machine is named.
    pub(crate) fn names_machine(&self) -> bool {
        let mut values = self.values(&["machine", "M"]);
        let first_is_type = |value: &str| {
            let first = value.split(',').next().unwrap_or_default();
            !first.is_empty() && !first.contains('=')
        };
        values.any(first_is_type) || self.machine("type").is_some()
    }

    /// Bytes of memory, by `-m` or `-machine memory.size=`.
    pub(crate) fn memory(&self) -> Result<u64, Refusal> {
        let mut size = None;
        for value in self.values(&["m"]) {
            let first = value.split(',').next().unwrap_or_default();
            let found = match first.contains('=') {
                true => value
                    .rsplit(',')
                    .find_map(|part| part.strip_prefix("size=")),
                false => Some(first),
            };
            size = found.or(size);
        }
        let Some(text) = self.machine("memory.size").or(size) else {
            return Ok(DEFAULT_MEMORY);
        };
        let refused = || Refusal(format!("-m {text}: this is no size of memory"));
        bytes(text).filter(|size| *size > 0).ok_or_else(refused)
    }

    /// Whether the user's arguments say what the memory is, so that it can be
    /// shared; an error if it cannot.
    pub(crate) fn shares_memory(&self) -> Result<bool, Refusal> {
        if self.has("mem-path") || self.has("mem-prealloc") {
            let what = "-mem-path and -mem-prealloc make memory that is not shared: take \
                        -object memory-backend-file,id=ram,size=SIZE,mem-path=PATH,share=on \
                        -machine memory-backend=ram";
            return Err(Refusal(what.to_owned()));
        }
        let nodes = self.values(&["numa"]);
        let of_nodes = nodes.flat_map(|node| {
            let parts = node.split(',');
            parts.filter_map(|part| part.strip_prefix("memdev="))
        });
        let mut named = self
            .machine("memory-backend")
            .into_iter()
            .chain(of_nodes)
            .peekable();
        let is_named = named.peek().is_some();
        for id in named {
            if !self.is_shared(id) {
                return Err(Refusal(format!(
                    "the memory `{id}` is not shared, so that no device would see it: give its \
                     -object memory-backend-memfd or memory-backend-file share=on"
                )));
            }
        }
        Ok(is_named)
    }

    /// Whether the memory object `id` can be mapped by others.
    fn is_shared(&self, id: &str) -> bool {
        self.values(&["object"]).any(|object| {
            if let Ok(object) = serde_json::from_str::<serde_json::Value>(object) {
                return object["id"] == *id && object["share"] == true;
            }
            let mut parts = object.split(',');
            let kind = parts.next().unwrap_or_default();
            let parts: Vec<_> = parts.collect();
            let shared = parts.contains(&"share=on") || parts.contains(&"share=true");
            // A memfd is shared unless it is said not to be.
            let private = parts.contains(&"share=off") || parts.contains(&"share=false");
            let is_memfd = kind.trim_start_matches("qom-type=") == "memory-backend-memfd";
            let is_it = parts
                .iter()
                .any(|part| part.strip_prefix("id=") == Some(id));
            is_it && (shared || is_memfd && !private)
        })
    }

    /// What cannot be together with devices of ours.
    pub(crate) fn check(&self) -> Result<(), Refusal> {
        if self.has("daemonize") {
            let what = "-daemonize: QEMU has to stay, since its devices end with iogate";
            return Err(Refusal(what.to_owned()));
        }
        let others = self.values(&["device"]).find(|device| {
            ["intel-iommu", "amd-iommu", "virtio-iommu-pci"]
                .iter()
                .any(|iommu| device.contains(iommu))
        });
        match others {
            Some(device) => Err(Refusal(format!(
                "-device {device}: a guest has either QEMU's IOMMU or ours"
            ))),
            None => Ok(()),
        }
    }

    /// The arguments of a start that is to come as far as the firmware: the
    /// same machine, which is not to wait and shows nothing.
    pub(crate) fn for_firmware(&self) -> Vec<OsString> {
        let waits = |word: &&OsString| *word != "-S" && *word != "--S";
        let words = self.words.iter().filter(waits).cloned();
        words
            .chain(["-display", "none"].map(OsString::from))
            .collect()
    }
}

/// A size as QEMU takes it: MiB unless a suffix says else.
fn bytes(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text.get(digits.len()..)? {
        "b" | "B" => 0,
        "k" | "K" => 10,
        "" | "m" | "M" => 20,
        "g" | "G" => 30,
        "t" | "T" => 40,
        _ => return None,
    };
    let number: f64 = digits.parse().ok().filter(|number| *number >= 0.0)?;
    // A fraction such as 1.5G is rounded down; a size that an f64 cannot hold
    // is more than any machine has.
    let size = number * 2_f64.powi(unit);
    (size < 2_f64.powi(60)).then_some(size as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(line: &str) -> User {
        let words: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        User::new(&words)
    }

    #[test]
    fn memory_is_what_m_says_and_the_last_one_counts() {
        let memory = |line: &str| user(line).memory().map_err(|refusal| refusal.0);
        assert_eq!(memory(""), Ok(128 << 20));
        assert_eq!(memory("-m 512"), Ok(512 << 20));
        assert_eq!(memory("-m 1.5G,slots=2,maxmem=4G"), Ok(3 << 29));
        assert_eq!(memory("-m 512 --m size=2048M"), Ok(2 << 30));
        assert_eq!(memory("-m 512 -m maxmem=4G"), Ok(512 << 20));
        assert_eq!(memory("-M q35,memory.size=1G"), Ok(1 << 30));
        assert_eq!(memory("-append -m -m 64"), Ok(64 << 20));
        for wrong in ["-m lots", "-m 0", "-m -1", "-m 1X", "-m 9999999T", "-m nan"] {
            assert!(memory(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_machine_is_named_by_its_type() {
        assert!(!user("-m 1G -machine accel=kvm").names_machine());
        assert!(user("-M pc,accel=kvm").names_machine());
        assert!(user("--machine accel=tcg,type=q35").names_machine());
    }

    #[test]
    fn memory_of_the_users_own_has_to_be_shared() {
        let shares = |line: &str| user(line).shares_memory().map_err(|refusal| refusal.0);
        assert_eq!(shares("-m 1G"), Ok(false));
        let own = "-machine q35,memory-backend=r -object memory-backend";
        assert_eq!(
            shares(&format!("{own}-file,id=r,size=1G,share=on")),
            Ok(true)
        );
        assert_eq!(shares(&format!("{own}-memfd,id=r,size=1G")), Ok(true));
        assert!(shares(&format!("{own}-ram,id=r,size=1G")).is_err());
        assert!(shares(&format!("{own}-memfd,id=r,size=1G,share=off")).is_err());
        assert!(shares("-machine memory-backend=r").is_err());
        assert!(shares("-numa node,memdev=r -object memory-backend-ram,id=r").is_err());
        assert!(shares("-mem-path /dev/hugepages").is_err());
    }

    #[test]
    fn what_cannot_be_with_us_is_refused() {
        assert!(user("-nodefaults -daemonize").check().is_err());
        assert!(user("-device intel-iommu,intremap=on").check().is_err());
        assert!(user("-device e1000 -append -daemonize").check().is_ok());
    }
}
