//! The kit: QEMU, its loader and libraries, firmware, a kernel and busybox in one directory,
//! made once from the distribution's packages. A stamp says what it was made of.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::initramfs::Initramfs;
use super::module;
use crate::apt::{Apt, Mirror, Release};
use crate::process::Job;
use crate::verdict::{About as _, Stop};

/// Raised when the kit's content changes for the same packages.
const LAYOUT: u32 = 3;
/// The first QEMU whose vfio-pci behaves as the cases expect.
const QEMU_MAJOR: u32 = 10;
const PACKAGES: [&str; 2] = ["qemu-system-x86", "busybox-static"];
/// Drivers of the guest, with all they depend on.
const MODULES: [&str; 5] = [
    "nvme",
    "virtio_pci",
    "virtio_net",
    "vfio_pci",
    "vfio_iommu_type1",
];
/// The first that the mirror has is taken.
const KERNELS: [&str; 3] = [
    "linux-image-cloud-amd64",
    "linux-image-virtual",
    "linux-image-amd64",
];
const LIBRARY_DIRECTORIES: [&str; 2] = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];
const LOADER: &str = "ld-linux-x86-64.so.2";

/// A finished kit: a directory that may be copied anywhere.
#[derive(Clone, Debug)]
pub(crate) struct Kit {
    pub(crate) directory: PathBuf,
}

impl Kit {
    /// Makes the kit, or finds it made.
    pub(crate) fn provide(xtask: &Path, log: &Path) -> Result<Self, Stop> {
        let mirror = Mirror::of_this_machine(Release::Stable)?;
        let kit = Self {
            directory: xtask.join("kit"),
        };
        let stamp = format!(
            "layout {LAYOUT}\n{PACKAGES:?} {KERNELS:?} {MODULES:?}\n{}",
            mirror.source
        );
        if fs::read_to_string(kit.directory.join("stamp")).is_ok_and(|found| found == stamp) {
            return Ok(kit);
        }
        let apt = Apt::new(&xtask.join("apt"), mirror, log)?;
        check_version(&apt)?;
        let kernel = kernel_packages(&apt)?;
        let new = xtask.join("kit.new");
        for directory in [&kit.directory, &new] {
            // Neither need exist.
            let _ = fs::remove_dir_all(directory);
        }
        fs::create_dir_all(&new).about(new.display())?;
        let tree = apt.unpack_with_dependencies(&PACKAGES)?;
        apt.unpack_only(&kernel)?;
        gather_qemu(&tree, &new, log)?;
        gather_guest(&tree, &new)?;
        fs::write(new.join("stamp"), stamp).about(new.display())?;
        fs::rename(&new, &kit.directory).about(kit.directory.display())?;
        Ok(kit)
    }

    /// As this kit, with the newest QEMU that the distribution has for this release.
    pub(crate) fn newest(&self, xtask: &Path, log: &Path) -> Result<Self, Stop> {
        let mirror = Mirror::of_this_machine(Release::Backports)?;
        let kit = Self {
            directory: xtask.join("kit-newest"),
        };
        let own = fs::read_to_string(self.directory.join("stamp")).about("stamp")?;
        let stamp = format!("{own}\n{}", mirror.source);
        if fs::read_to_string(kit.directory.join("stamp")).is_ok_and(|found| found == stamp) {
            return Ok(kit);
        }
        let apt = Apt::new(&xtask.join("apt-newest"), mirror, log)?;
        // It need not exist.
        let _ = fs::remove_dir_all(&kit.directory);
        crate::place::copy_tree(&self.directory, &kit.directory).about(kit.directory.display())?;
        fs::remove_file(kit.directory.join("stamp")).about("stamp")?;
        let tree = apt.unpack_with_dependencies(&PACKAGES[..1])?;
        gather_qemu(&tree, &kit.directory, log)?;
        fs::write(kit.directory.join("stamp"), stamp).about(kit.directory.display())?;
        Ok(kit)
    }

    /// As this kit, with the newest kernel that the distribution has for this release.
    pub(crate) fn newest_kernel(&self, xtask: &Path, log: &Path) -> Result<Self, Stop> {
        let mirror = Mirror::of_this_machine(Release::Backports)?;
        let kit = Self {
            directory: xtask.join("kit-newest-kernel"),
        };
        let own = fs::read_to_string(self.directory.join("stamp")).about("stamp")?;
        let stamp = format!("{own}\nkernel of {}", mirror.source);
        if fs::read_to_string(kit.directory.join("stamp")).is_ok_and(|found| found == stamp) {
            return Ok(kit);
        }
        let apt = Apt::new(&xtask.join("apt-newest-kernel"), mirror, log)?;
        let kernel = kernel_packages(&apt)?;
        // It need not exist.
        let _ = fs::remove_dir_all(&kit.directory);
        crate::place::copy_tree(&self.directory, &kit.directory).about(kit.directory.display())?;
        fs::remove_file(kit.directory.join("stamp")).about("stamp")?;
        fs::remove_dir_all(kit.directory.join("modules")).about("modules")?;
        let tree = apt.unpack_only(&kernel)?;
        gather_kernel(&tree, &kit.directory, &kit.directory.join("busybox"))?;
        fs::write(kit.directory.join("stamp"), stamp).about(kit.directory.display())?;
        Ok(kit)
    }

    /// The kernel's version, as its image says it (x86: Documentation/arch/x86/boot.rst, `kernel_version`).
    pub(crate) fn kernel_version(&self) -> Result<String, Stop> {
        let path = self.kernel();
        let image = fs::read(&path).about(path.display())?;
        let at = match image.get(0x20e..0x210) {
            Some([low, high]) => 0x200 + usize::from(u16::from_le_bytes([*low, *high])),
            _ => image.len(),
        };
        let text = image.get(at..).unwrap_or_default();
        let end = text.iter().position(|byte| *byte == 0 || *byte == b' ');
        Ok(String::from_utf8_lossy(&text[..end.unwrap_or(0)]).into_owned())
    }

    /// What QEMU says of its version.
    pub(crate) fn version(&self, log: &Path) -> Result<String, Stop> {
        let mut words = self.qemu().into_iter();
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words).arg("--version");
        let ended = Job::new(command, log).run()?.success("QEMU's version")?;
        let version = ended.log.split("version ").nth(1);
        let version = version.and_then(|text| text.split_whitespace().next());
        Ok(version.unwrap_or("of no version").to_owned())
    }

    /// The words that start QEMU, its own loader first: the machine's libraries may be older.
    pub(crate) fn qemu(&self) -> Vec<String> {
        let at = self.directory.display();
        [
            format!("{at}/{LOADER}"),
            "--library-path".to_owned(),
            format!("{at}/lib"),
            format!("{at}/qemu-system-x86_64"),
            "-L".to_owned(),
            format!("{at}/share"),
        ]
        .into()
    }

    /// The kernel image.
    pub(crate) fn kernel(&self) -> PathBuf {
        self.directory.join("vmlinuz")
    }

    /// An initramfs of busybox, the modules of the kit and this init script.
    pub(crate) fn initramfs(&self, init: &[u8]) -> Result<Vec<u8>, Stop> {
        self.initramfs_with(init, &[])
    }

    /// The same with these programs.
    pub(crate) fn initramfs_with(
        &self,
        init: &[u8],
        programs: &[(&str, &[u8])],
    ) -> Result<Vec<u8>, Stop> {
        let read = |name: &str| {
            let path = self.directory.join(name);
            fs::read(&path).about(path.display())
        };
        let mut archive = Initramfs::new();
        archive.file("init", init);
        archive.file("bin/busybox", &read("busybox")?);
        for (name, content) in programs {
            archive.file(name, content);
        }
        let order = read("modules/order")?;
        for name in String::from_utf8_lossy(&order).lines() {
            archive.file(
                &format!("lib/{name}.ko"),
                &read(&format!("modules/{name}.ko"))?,
            );
        }
        archive.file("lib/order", &order);
        Ok(archive.finish())
    }
}

fn check_version(apt: &Apt<'_>) -> Result<(), Stop> {
    let remedy = "run on Debian 12 or later, or Ubuntu 25.10 or later";
    let version = apt
        .version(PACKAGES[0])?
        .ok_or_else(|| Stop::not_run("the mirror has no qemu-system-x86", remedy))?;
    // 1:10.0.2+ds-1 is epoch, upstream version and revision.
    let upstream = version.split_once(':').map_or(&*version, |(_, rest)| rest);
    let major = upstream
        .split('.')
        .next()
        .and_then(|text| text.parse::<u32>().ok());
    if major.is_some_and(|major| major >= QEMU_MAJOR) {
        return Ok(());
    }
    Err(Stop::not_run(
        format!("the mirror has QEMU {version}, older than {QEMU_MAJOR}.0"),
        remedy,
    ))
}

/// The packages that hold the kernel and its modules, found from the package that names the current one.
fn kernel_packages(apt: &Apt<'_>) -> Result<Vec<String>, Stop> {
    for meta in KERNELS {
        if apt.version(meta)?.is_none() {
            continue;
        }
        let mut packages = vec![meta.to_owned()];
        let mut next = 0;
        while let Some(package) = packages.get(next).cloned() {
            next += 1;
            for name in apt.depends(&package)? {
                let kernel = ["linux-image-", "linux-modules-", "linux-binary-"]
                    .iter()
                    .any(|prefix| name.starts_with(prefix));
                if kernel && !packages.contains(&name) {
                    packages.push(name);
                }
            }
        }
        return Ok(packages);
    }
    Err(Stop::not_run(
        "the mirror has no kernel package that is known here",
        "run on Debian 12 or later, or Ubuntu 25.10 or later",
    ))
}

/// The first of these paths that is a file in the unpacked packages.
fn find(tree: &Path, paths: &[String]) -> Result<PathBuf, Stop> {
    paths
        .iter()
        .map(|path| tree.join(path))
        .find(|path| path.is_file())
        .ok_or_else(|| Stop::failed(format!("the packages hold no {}", paths[0])))
}

/// Copies QEMU, its libraries and firmware out of the unpacked packages.
fn gather_qemu(tree: &Path, kit: &Path, log: &Path) -> Result<(), Stop> {
    for directory in ["lib", "share"] {
        fs::create_dir_all(kit.join(directory)).about(kit.display())?;
    }
    let qemu = find(tree, &["usr/bin/qemu-system-x86_64".into()])?;
    let loaders = LIBRARY_DIRECTORIES.map(|directory| format!("{directory}/{LOADER}"));
    let loader = find(tree, &loaders)?;
    copy(&qemu, &kit.join("qemu-system-x86_64"))?;
    copy(&loader, &kit.join(LOADER))?;
    for library in libraries(tree, &loader, &qemu, log)? {
        copy(
            &library,
            &kit.join("lib")
                .join(library.file_name().unwrap_or_default()),
        )?;
    }
    for directory in ["usr/share/seabios", "usr/share/qemu"] {
        let directory = tree.join(directory);
        for entry in fs::read_dir(&directory)
            .about(directory.display())?
            .flatten()
        {
            // Firmware and boot ROMs of a PC are small; the large ones are for other machines.
            let small =
                fs::metadata(entry.path()).is_ok_and(|file| file.is_file() && file.len() < 1 << 20);
            if small && entry.path().extension().is_some_and(|kind| kind == "bin") {
                copy(&entry.path(), &kit.join("share").join(entry.file_name()))?;
            }
        }
    }
    Ok(())
}

/// Copies the kernel, its modules and busybox out of the unpacked packages.
fn gather_guest(tree: &Path, kit: &Path) -> Result<(), Stop> {
    let busybox = find(tree, &["usr/bin/busybox".into(), "bin/busybox".into()])?;
    copy(&busybox, &kit.join("busybox"))?;
    gather_kernel(tree, kit, &busybox)
}

/// Copies the kernel and its modules out of the unpacked packages.
fn gather_kernel(tree: &Path, kit: &Path, busybox: &Path) -> Result<(), Stop> {
    fs::create_dir_all(kit.join("modules")).about(kit.display())?;
    copy(&kernel_image(tree)?, &kit.join("vmlinuz"))?;
    let modules = ["usr/lib/modules", "lib/modules"]
        .map(|path| tree.join(path))
        .into_iter()
        .find(|path| path.is_dir());
    let mut order = String::new();
    if let Some(modules) = modules {
        for module in module::with_dependencies(&modules, busybox, &MODULES)? {
            let path = kit.join("modules").join(format!("{}.ko", module.name));
            fs::write(&path, module.bytes).about(path.display())?;
            order += &module.name;
            order.push('\n');
        }
    }
    fs::write(kit.join("modules/order"), order).about(kit.display())
}

/// What the loader itself says the program needs.
fn libraries(tree: &Path, loader: &Path, program: &Path, log: &Path) -> Result<Vec<PathBuf>, Stop> {
    let path = LIBRARY_DIRECTORIES.map(|directory| tree.join(directory).display().to_string());
    let mut command = Command::new(loader);
    command
        .arg("--library-path")
        .arg(path.join(":"))
        .arg("--list")
        .arg(program)
        .env_remove("LD_LIBRARY_PATH");
    let list = Job::new(command, log)
        .run()?
        .success("listing QEMU's libraries")?;
    if let Some(missing) = list.log.lines().find(|line| line.contains("not found")) {
        return Err(Stop::failed(format!("QEMU's library is missing:{missing}")));
    }
    Ok(list
        .log
        .lines()
        .filter_map(|line| line.split_once("=> ")?.1.split(" (").next())
        .map(PathBuf::from)
        .collect())
}

fn kernel_image(tree: &Path) -> Result<PathBuf, Stop> {
    let boot = fs::read_dir(tree.join("boot"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-"))
        });
    let beside_modules = || {
        fs::read_dir(tree.join("usr/lib/modules"))
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path().join("vmlinuz"))
            .find(|path| path.is_file())
    };
    boot.or_else(beside_modules)
        .ok_or_else(|| Stop::failed("the kernel's packages hold no vmlinuz"))
}

fn copy(from: &Path, to: &Path) -> Result<(), Stop> {
    fs::copy(from, to).map(drop).about(from.display())
}
