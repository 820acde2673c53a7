//! A probe's findings for a person.

use std::fmt::Write as _;

use iogate_dma::Span;

use super::facts::{Facts, Function, Opened};

pub(super) fn render(facts: &Facts) -> String {
    let mut out = String::new();
    let assignable: Vec<&Function> = facts
        .functions
        .iter()
        .filter(|f| f.is_assignable())
        .collect();
    for (number, group) in &facts.groups {
        let members: Vec<String> = group.members.iter().map(ToString::to_string).collect();
        let _ = write!(out, "group {number}: {}", members.join(" "));
        if let Some(kind) = &group.kind {
            let _ = write!(out, "  ({kind})");
        }
        out.push('\n');
        for (span, kind) in &group.reserved {
            let _ = writeln!(out, "  reserved {span} {kind}");
        }
    }
    for function in &assignable {
        render_function(&mut out, function);
    }
    let others = facts.functions.len() - assignable.len();
    if others > 0 {
        let _ = writeln!(
            out,
            "{others} other function{} not bound to a VFIO driver",
            if others == 1 { " is" } else { "s are" }
        );
    }
    out.push_str(&summary(facts, &assignable));
    out
}

fn render_function(out: &mut String, function: &Function) {
    let _ = writeln!(
        out,
        "{} {}  {:04x}:{:04x}, class {:06x}, driver {}{}",
        function.kind(),
        function.source,
        function.vendor,
        function.device,
        function.class,
        function.driver.as_deref().unwrap_or("none"),
        match function.cdev {
            Some(number) => format!(", vfio{number}"),
            None => String::new(),
        }
    );
    if let Some(opened) = function.by_group.as_ref().or(function.by_cdev.as_ref()) {
        render_opened(out, opened);
    }
    let ways = [("group", &function.by_group), ("cdev", &function.by_cdev)];
    for (path, opened) in ways {
        if opened.is_some() {
            let _ = write!(out, "  ok  opens by {path}");
            for done in function.exercised.iter().filter(|done| done.path == path) {
                let _ = write!(out, "; {}", done.what);
            }
            out.push('\n');
        }
    }
    for problem in &function.problems {
        let _ = writeln!(
            out,
            "  PROBLEM  {}\n    remedy: {}",
            problem.what, problem.remedy
        );
    }
}

fn render_opened(out: &mut String, opened: &Opened) {
    if !opened.iommu.ranges.is_empty() {
        let ranges: Vec<String> = opened.iommu.ranges.iter().map(Span::to_string).collect();
        let _ = writeln!(out, "  IOVA {}", ranges.join(", "));
    }
    let sizes = page_sizes(opened.iommu.page_sizes);
    if !sizes.is_empty() {
        let _ = write!(out, "  page sizes {}", sizes.join(" "));
        if let Some(left) = opened.iommu.mappings_left {
            let _ = write!(out, "; {left} mappings may be made");
        }
        out.push('\n');
    }
    for (index, region) in &opened.regions {
        let mut rights = String::new();
        for (has, letter) in [
            (region.readable, 'r'),
            (region.writable, 'w'),
            (region.mappable, 'm'),
        ] {
            rights.push(if has { letter } else { '-' });
        }
        let _ = writeln!(
            out,
            "  region {index}  {:<7} {rights}  {}",
            region_name(*index),
            bytes(region.size)
        );
    }
    for (index, interrupt) in &opened.interrupts {
        let _ = write!(
            out,
            "  interrupt {index}  {:<5} {} vector{}",
            interrupt_name(*index),
            interrupt.count,
            if interrupt.count == 1 { "" } else { "s" }
        );
        for (has, word) in [
            (interrupt.maskable, "maskable"),
            (interrupt.automasked, "automasked"),
            (interrupt.fixed_size, "all at once"),
        ] {
            if has {
                let _ = write!(out, ", {word}");
            }
        }
        out.push('\n');
    }
    if !opened.capabilities.is_empty() {
        let _ = writeln!(out, "  capabilities {}", opened.capabilities.join(", "));
    }
}

fn summary(facts: &Facts, assignable: &[&Function]) -> String {
    let bad = assignable.iter().filter(|f| !f.problems.is_empty()).count();
    if assignable.is_empty() {
        return "no function is bound to a VFIO driver: bind one to vfio-pci, or use `iogate run -- iogate probe`\n".to_owned();
    }
    let looked = match (
        assignable.iter().any(|f| !f.exercised.is_empty()),
        assignable
            .iter()
            .any(|f| f.by_group.is_some() || f.by_cdev.is_some()),
    ) {
        (true, _) => "opened and driven",
        (false, true) => "opened",
        (false, false) => "looked up in sysfs (--open opens them, --exercise drives them)",
    };
    let place = if facts.inside_session {
        ", inside iogate run"
    } else {
        ""
    };
    match bad {
        0 => format!(
            "ok: {} assignable, {looked}{place}\n",
            count(assignable.len())
        ),
        bad => format!(
            "{bad} of {} cannot be used{place}\n",
            count(assignable.len())
        ),
    }
}

fn count(functions: usize) -> String {
    format!(
        "{functions} function{}",
        if functions == 1 { "" } else { "s" }
    )
}

pub(super) fn region_name(index: u32) -> String {
    match index {
        0..=5 => format!("BAR {index}"),
        6 => "ROM".to_owned(),
        7 => "config".to_owned(),
        8 => "VGA".to_owned(),
        _ => "device".to_owned(),
    }
}

pub(super) fn interrupt_name(index: u32) -> &'static str {
    match index {
        0 => "INTx",
        1 => "MSI",
        2 => "MSI-X",
        3 => "error",
        4 => "request",
        _ => "other",
    }
}

/// The sizes whose bits are set, at most the lowest eight.
fn page_sizes(bits: u64) -> Vec<String> {
    (0..64)
        .map(|n| 1_u64 << n)
        .filter(|size| bits & size != 0)
        .take(8)
        .map(bytes)
        .collect()
}

fn bytes(size: u64) -> String {
    const UNITS: [(u32, &str); 4] = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    UNITS
        .iter()
        .find(|(shift, _)| size >= 1 << shift && size.trailing_zeros() >= *shift)
        .map_or_else(
            || format!("{size} bytes"),
            |(shift, unit)| format!("{} {unit}", size >> shift),
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_told_in_the_largest_whole_unit() {
        assert_eq!(bytes(256), "256 bytes");
        assert_eq!(bytes(4096), "4 KiB");
        assert_eq!(bytes(1 << 20), "1 MiB");
        assert_eq!(bytes((1 << 20) + 1024), "1025 KiB");
    }
}
