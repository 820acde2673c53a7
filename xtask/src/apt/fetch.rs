//! A private apt: own state, cache and source list, the machine's own transport settings.
//! Every package is verified by apt against the mirror's signature before it is unpacked.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::Mirror;
use crate::process::Job;
use crate::verdict::{About as _, Stop};

/// A private apt in a directory of its own, which is removed when this is dropped.
pub(crate) struct Apt<'a> {
    directory: PathBuf,
    mirror: Mirror,
    log: &'a Path,
}

impl<'a> Apt<'a> {
    /// Sets it up and reads the mirror's package lists.
    pub(crate) fn new(directory: &Path, mirror: Mirror, log: &'a Path) -> Result<Self, Stop> {
        let apt = Self {
            directory: directory.to_path_buf(),
            mirror,
            log,
        };
        apt.set_up().about(directory.display())?;
        apt.run("apt-get", &["-qq", "update"], 180)?;
        Ok(apt)
    }

    fn set_up(&self) -> std::io::Result<()> {
        let at = self.directory.display();
        // A leftover of an interrupted run may be half-written.
        let _ = fs::remove_dir_all(&self.directory);
        for part in [
            "state/lists/partial",
            "cache/archives/partial",
            "sources",
            "log",
            "tree",
        ] {
            fs::create_dir_all(self.directory.join(part))?;
        }
        fs::write(self.directory.join("state/status"), "")?;
        fs::write(
            self.directory.join("sources/mirror.sources"),
            &self.mirror.source,
        )?;
        let preferred = match self.mirror.preferred {
            Some(suite) => format!("APT::Default-Release \"{suite}\";\n"),
            None => String::new(),
        };
        fs::write(
            self.directory.join("apt.conf"),
            // The hooks that are cleared would act on the machine's own package state.
            format!(
                "#clear APT::Update;\n#clear DPkg;\n#clear APT::Architectures;\n\
                 APT::Architecture \"amd64\";\nAPT::Architectures \"amd64\";\n\
                 APT::Install-Recommends \"false\";\nAPT::Sandbox::User \"root\";\n\
                 APT::Update::Error-Mode \"any\";\nAcquire::Languages \"none\";\n\
                 Dir::State \"{at}/state\";\nDir::State::status \"{at}/state/status\";\n\
                 Dir::Cache \"{at}/cache\";\nDir::Log \"{at}/log\";\n\
                 Dir::Etc::sourcelist \"/dev/null\";\nDir::Etc::sourceparts \"{at}/sources\";\n\
                 Dir::Etc::preferences \"/dev/null\";\nDir::Etc::preferencesparts \"/dev/null\";\n{preferred}"
            ),
        )
    }

    /// The version that the mirror has of a package.
    pub(crate) fn version(&self, package: &str) -> Result<Option<String>, Stop> {
        let text = self.run("apt-cache", &["policy", package], 60)?;
        Ok(text
            .lines()
            .find_map(|line| line.trim().strip_prefix("Candidate: "))
            .filter(|version| *version != "(none)")
            .map(str::to_owned))
    }

    /// What a package depends on, by name.
    pub(crate) fn depends(&self, package: &str) -> Result<Vec<String>, Stop> {
        let text = self.run("apt-cache", &["depends", "--important", package], 60)?;
        Ok(text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .map(|name| name.trim_matches(['<', '>']).to_owned())
            .collect())
    }

    /// Downloads packages with all they depend on, and unpacks them. Returns the tree.
    pub(crate) fn unpack_with_dependencies(&self, packages: &[&str]) -> Result<PathBuf, Stop> {
        let mut arguments = vec!["-qq", "-y", "--download-only", "install"];
        arguments.extend(packages);
        self.run("apt-get", &arguments, 600)?;
        self.unpack(&self.directory.join("cache/archives"))
    }

    /// Downloads exactly these packages, and unpacks them. Returns the tree.
    pub(crate) fn unpack_only(&self, packages: &[String]) -> Result<PathBuf, Stop> {
        let mut arguments = vec!["-qq", "download"];
        arguments.extend(packages.iter().map(String::as_str));
        self.run("apt-get", &arguments, 600)?;
        self.unpack(&self.directory)
    }

    fn unpack(&self, directory: &Path) -> Result<PathBuf, Stop> {
        let tree = self.directory.join("tree");
        for entry in fs::read_dir(directory).about(directory.display())? {
            let path = entry.about(directory.display())?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                let mut command = Command::new("dpkg-deb");
                command.arg("-x").arg(&path).arg(&tree);
                Job::new(command, self.log)
                    .run()?
                    .success(&format!("unpacking {}", path.display()))?;
                fs::remove_file(&path).about(path.display())?;
            }
        }
        Ok(tree)
    }

    fn run(&self, program: &str, arguments: &[&str], limit: u64) -> Result<String, Stop> {
        let mut command = Command::new(program);
        command
            .arg("-c")
            .arg(self.directory.join("apt.conf"))
            .args(arguments)
            .current_dir(&self.directory)
            .env("LC_ALL", "C")
            .env("DEBIAN_FRONTEND", "noninteractive");
        let ended = Job::new(command, self.log).limit(limit).run()?;
        if ended.status.success() {
            return Ok(ended.log);
        }
        let why = ended
            .log
            .lines()
            .find(|line| line.starts_with("E:"))
            .unwrap_or("no message");
        Err(Stop::not_run(
            format!("{program} {} failed: {why}", arguments.join(" ")),
            format!(
                "make the mirror of {} reachable for apt, with its keyring up to date",
                self.mirror.name
            ),
        ))
    }
}

impl Drop for Apt<'_> {
    fn drop(&mut self) {
        // A directory that stays only takes space, and the next run starts it afresh.
        let _ = fs::remove_dir_all(&self.directory);
    }
}
