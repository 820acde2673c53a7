//! Which mirror, suite and keys the machine itself uses: sources.list(5) in both of its formats.

use std::path::Path;

use crate::verdict::Stop;

/// The Debian release whose QEMU is new enough.
const DEBIAN_SUITE: &str = "trixie";
/// What it has of later releases.
const DEBIAN_BACKPORTS: &str = "trixie-backports";

/// Which packages of the distribution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Release {
    Stable,
    /// The newest that are built for the stable release; elsewhere than on Debian the same as stable.
    Backports,
}

/// One entry of the machine's package sources.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Entry {
    uri: String,
    suites: Vec<String>,
    components: Vec<String>,
    /// A key file, a fingerprint or an inline key, in the deb822 form; empty means apt's trusted keys.
    signed_by: String,
}

/// Where packages come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mirror {
    /// The one entry of our own source list, in the deb822 form.
    pub(crate) source: String,
    /// For messages: the distribution's name and the suite.
    pub(crate) name: String,
    /// The suite whose packages are preferred, if it is not for apt to say.
    pub(crate) preferred: Option<&'static str>,
}

impl Mirror {
    /// Reads the machine's package sources.
    pub(crate) fn of_this_machine(release: Release) -> Result<Self, Stop> {
        let remedy = "run on Debian 12 or later, or Ubuntu 25.10 or later";
        if !program_exists("apt-get") || !program_exists("dpkg-deb") {
            return Err(Stop::not_run("this machine has no apt", remedy));
        }
        let system = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
        Self::choose(&system, &entries_of(Path::new("/etc/apt")), release).ok_or_else(|| {
            Stop::not_run(
                "no package mirror is set up in /etc/apt/sources.list or sources.list.d",
                "add the distribution's mirror there",
            )
        })
    }

    fn choose(system: &str, entries: &[Entry], release: Release) -> Option<Self> {
        let field = |name: &str| {
            system
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
                .map(|value| value.trim_matches('"').to_owned())
                .unwrap_or_default()
        };
        let own = field("VERSION_CODENAME");
        let own = own.split('/').next().unwrap_or_default();
        let debian = field("ID") == "debian";
        let rolling = [
            "stable",
            "oldstable",
            "testing",
            "unstable",
            "sid",
            DEBIAN_SUITE,
        ];
        let entry = entries.iter().find(|entry| {
            entry.components.iter().any(|name| name == "main")
                && entry
                    .suites
                    .iter()
                    .any(|suite| suite == own || (debian && rolling.contains(&suite.as_str())))
        })?;
        let preferred = (debian && release == Release::Backports).then_some(DEBIAN_BACKPORTS);
        let (suites, components) = if debian {
            let suites = match preferred {
                Some(backports) => format!("{DEBIAN_SUITE} {backports}"),
                None => DEBIAN_SUITE.to_owned(),
            };
            (suites, "main".to_owned())
        } else {
            let updates = format!("{own}-updates");
            let wanted: Vec<&str> = entry
                .suites
                .iter()
                .map(String::as_str)
                .filter(|suite| *suite == own || *suite == updates)
                .collect();
            (wanted.join(" "), entry.components.join(" "))
        };
        let mut source = format!(
            "Types: deb\nURIs: {}\nSuites: {suites}\nComponents: {components}\nArchitectures: amd64\n",
            entry.uri
        );
        if !entry.signed_by.is_empty() {
            source += &format!("Signed-By: {}\n", entry.signed_by);
        }
        Some(Self {
            source,
            name: format!("{} {suites}", field("ID")),
            preferred,
        })
    }
}

/// Whether a program is on the PATH.
fn program_exists(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(name).is_file())
}

fn entries_of(etc: &Path) -> Vec<Entry> {
    let mut files = vec![etc.join("sources.list")];
    if let Ok(parts) = std::fs::read_dir(etc.join("sources.list.d")) {
        let mut parts: Vec<_> = parts.flatten().map(|part| part.path()).collect();
        parts.sort();
        files.extend(parts);
    }
    files
        .iter()
        .flat_map(|path| {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("list") => one_line_entries(&text),
                Some("sources") => deb822_entries(&text),
                _ => Vec::new(),
            }
        })
        .collect()
}

/// `deb [option=value ...] URI SUITE COMPONENT...`
fn one_line_entries(text: &str) -> Vec<Entry> {
    text.lines()
        .filter_map(|line| {
            let line = line.split('#').next()?.trim();
            let mut rest = line.strip_prefix("deb")?.trim_start();
            if rest.len() + "deb".len() == line.len() {
                return None; // deb-src
            }
            let mut signed_by = String::new();
            if let Some(inside) = rest.strip_prefix('[') {
                let (options, after) = inside.split_once(']')?;
                rest = after;
                for option in options.split_whitespace() {
                    if let Some(key) = option.strip_prefix("signed-by=") {
                        signed_by = key.replace(',', " ");
                    }
                }
            }
            let mut words = rest.split_whitespace().map(str::to_owned);
            Some(Entry {
                uri: words.next()?,
                suites: vec![words.next()?],
                components: words.collect(),
                signed_by,
            })
        })
        .collect()
}

/// Paragraphs of `Field: value`, a line that begins with a space going on with the field before it.
fn deb822_entries(text: &str) -> Vec<Entry> {
    let without_comments: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    without_comments
        .split(|line| line.trim().is_empty())
        .filter_map(|paragraph| {
            let mut fields: Vec<(String, String)> = Vec::new();
            for line in paragraph {
                if line.starts_with([' ', '\t']) {
                    let (_, value) = fields.last_mut()?;
                    value.push('\n');
                    value.push_str(line);
                } else {
                    let (name, value) = line.split_once(':')?;
                    fields.push((name.to_lowercase(), value.trim().to_owned()));
                }
            }
            let field = |name: &str| {
                fields
                    .iter()
                    .find(|(field, _)| field == name)
                    .map(|(_, value)| value.clone())
                    .unwrap_or_default()
            };
            let words = |name: &str| field(name).split_whitespace().map(str::to_owned).collect();
            let types: Vec<String> = words("types");
            let off = ["no", "false"].contains(&field("enabled").as_str());
            let entry = Entry {
                uri: field("uris").split_whitespace().next()?.to_owned(),
                suites: words("suites"),
                components: words("components"),
                signed_by: field("signed-by"),
            };
            (!off && types.iter().any(|kind| kind == "deb")).then_some(entry)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOKWORM: &str = "ID=debian\nVERSION_CODENAME=bookworm\n";

    #[test]
    fn a_debian_machine_gets_trixie_from_its_own_mirror_with_its_own_key() {
        let entries = deb822_entries(
            "# by hand\nTypes: deb deb-src\nURIs: http://mirror.invalid/debian-security\nSuites: bookworm-security\n\
             Components: main\n\nTypes: deb\nURIs: http://mirror.invalid/debian\nSuites: bookworm bookworm-updates\n\
             Components: main contrib\nSigned-By: /keys/debian.gpg\n",
        );
        let mirror = Mirror::choose(BOOKWORM, &entries, Release::Stable).unwrap();
        assert_eq!(
            mirror.source,
            "Types: deb\nURIs: http://mirror.invalid/debian\nSuites: trixie\nComponents: main\n\
             Architectures: amd64\nSigned-By: /keys/debian.gpg\n"
        );
        assert_eq!(mirror.preferred, None);
        let mirror = Mirror::choose(BOOKWORM, &entries, Release::Backports).unwrap();
        assert!(mirror.source.contains("Suites: trixie trixie-backports\n"));
        assert_eq!(mirror.preferred, Some("trixie-backports"));
    }

    #[test]
    fn another_distribution_keeps_its_own_suite_and_updates() {
        let entries = one_line_entries(
            "deb-src http://mirror.invalid/u plucky main\n\
             deb [arch=amd64 signed-by=/k.gpg] http://mirror.invalid/u plucky main universe # comment\n",
        );
        let mirror = Mirror::choose(
            "ID=ubuntu\nVERSION_CODENAME=plucky\n",
            &entries,
            Release::Backports,
        )
        .unwrap();
        assert_eq!(mirror.preferred, None);
        assert!(
            mirror
                .source
                .contains("Suites: plucky\nComponents: main universe\n")
        );
        assert!(mirror.source.ends_with("Signed-By: /k.gpg\n"));
    }

    #[test]
    fn an_inline_key_goes_on_over_its_lines() {
        let entries = deb822_entries(
            "Types: deb\nURIs: http://mirror.invalid/d\nSuites: bookworm\nComponents: main\nSigned-By:\n -----BEGIN\n .\n abc\n",
        );
        assert_eq!(entries[0].signed_by, "\n -----BEGIN\n .\n abc");
    }

    #[test]
    fn disabled_entries_and_other_suites_are_not_used() {
        let entries = deb822_entries(
            "Types: deb\nEnabled: no\nURIs: http://mirror.invalid/d\nSuites: bookworm\nComponents: main\n\n\
             Types: deb\nURIs: http://mirror.invalid/e\nSuites: nodistro\nComponents: main\n",
        );
        assert_eq!(entries.len(), 1);
        assert_eq!(Mirror::choose(BOOKWORM, &entries, Release::Stable), None);
    }
}
