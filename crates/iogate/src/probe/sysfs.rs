//! What sysfs says about PCI functions and their groups.

use std::fs;
use std::io;
use std::path::Path;

use iogate_dma::{Iova, Source, Span};

use super::facts::{Facts, Function, Group};

const DEVICES: &str = "/sys/bus/pci/devices";
const GROUPS: &str = "/sys/kernel/iommu_groups";

/// Reads the functions named in `only`, or all.
pub(super) fn read(only: &[Source]) -> io::Result<Facts> {
    let mut facts = Facts::default();
    let mut names: Vec<Source> = match fs::read_dir(DEVICES) {
        Ok(entries) => entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error),
    };
    names.sort();
    for wanted in only {
        if !names.contains(wanted) {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("no PCI function {wanted} in {DEVICES}"),
            ));
        }
    }
    for source in names {
        if only.is_empty() || only.contains(&source) {
            let function = function(source);
            if let Some(number) = function.group {
                facts.groups.entry(number).or_insert_with(|| group(number));
            }
            facts.functions.push(function);
        }
    }
    judge(&mut facts);
    Ok(facts)
}

fn function(source: Source) -> Function {
    let path = Path::new(DEVICES).join(source.to_string());
    let number = |name: &str| {
        let text = fs::read_to_string(path.join(name)).unwrap_or_default();
        u32::from_str_radix(text.trim().trim_start_matches("0x"), 16).unwrap_or(0)
    };
    let link = |name: &str| {
        let target = fs::read_link(path.join(name)).ok()?;
        Some(target.file_name()?.to_str()?.to_owned())
    };
    let low = |value: u32| u16::try_from(value & 0xffff).unwrap_or(0);
    Function {
        source,
        vendor: low(number("vendor")),
        device: low(number("device")),
        class: number("class"),
        driver: link("driver"),
        group: link("iommu_group").and_then(|name| name.parse().ok()),
        cdev: fs::read_dir(path.join("vfio-dev"))
            .into_iter()
            .flatten()
            .flatten()
            .find_map(|entry| {
                entry
                    .file_name()
                    .to_str()?
                    .strip_prefix("vfio")?
                    .parse()
                    .ok()
            }),
        by_group: None,
        by_cdev: None,
        exercised: Vec::new(),
        problems: Vec::new(),
    }
}

fn group(number: u32) -> Group {
    let path = Path::new(GROUPS).join(number.to_string());
    let reserved = fs::read_to_string(path.join("reserved_regions")).unwrap_or_default();
    let mut members: Vec<Source> = fs::read_dir(path.join("devices"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    members.sort();
    Group {
        kind: fs::read_to_string(path.join("type"))
            .ok()
            .map(|text| text.trim().to_owned()),
        reserved: reserved.lines().filter_map(reserved_line).collect(),
        members,
    }
}

/// "0x00000000fee00000 0x00000000feefffff msi"
fn reserved_line(line: &str) -> Option<(Span, String)> {
    let mut words = line.split_whitespace();
    let mut address = || u64::from_str_radix(words.next()?.trim_start_matches("0x"), 16).ok();
    let span = Span::new(Iova(address()?), Iova(address()?))?;
    Some((span, words.next()?.to_owned()))
}

/// What sysfs alone tells to be wrong with assignable functions.
fn judge(facts: &mut Facts) {
    for function in facts.functions.iter_mut().filter(|f| f.is_assignable()) {
        let Some(number) = function.group else {
            function.problem(
                "it is in no IOMMU group: no IOMMU translates its DMA",
                "enable the IOMMU in the firmware and on the kernel's command line (intel_iommu=on, or amd_iommu and iommu options)",
            );
            continue;
        };
        let others: Vec<String> = facts
            .groups
            .get(&number)
            .into_iter()
            .flat_map(|group| &group.members)
            .filter(|member| blocks(**member))
            .map(Source::to_string)
            .collect();
        if !others.is_empty() {
            function.problem(
                format!(
                    "group {number} is not viable: {} bound to a host driver",
                    others.join(", ")
                ),
                "bind every function of the group to vfio-pci, or leave it without a driver",
            );
        }
    }
}

/// Whether a member's driver keeps its group from user space.
fn blocks(member: Source) -> bool {
    let function = function(member);
    function.driver.is_some() && !function.is_assignable() && !function.is_bridge()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reserved_line_reads_as_the_kernel_prints_it() {
        let (span, kind) = reserved_line("0x00000000fee00000 0x00000000feefffff msi").unwrap();
        assert_eq!(
            (span.first(), span.last()),
            (Iova(0xfee0_0000), Iova(0xfeef_ffff))
        );
        assert_eq!(kind, "msi");
        assert_eq!(reserved_line("nonsense"), None);
    }
}
