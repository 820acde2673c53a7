//! Huge pages for a while: what the machine has too few of is added, and taken back at the end.

use std::fs;

use crate::verdict::{About as _, Stop};

const COUNT: &str = "/proc/sys/vm/nr_hugepages";
const COMPACT: &str = "/proc/sys/vm/compact_memory";

/// Huge pages that are there until this is dropped.
pub(crate) struct HugePages {
    /// How many the machine had, if some were added.
    before: Option<u64>,
}

impl HugePages {
    /// So many free pages of 2 MiB.
    pub(crate) fn provide(wanted: u64) -> Result<Self, Stop> {
        let before = total()?;
        let free = free()?;
        if free >= wanted {
            return Ok(Self { before: None });
        }
        let refused = |why: String| {
            Stop::not_run(
                format!("NO HUGE PAGES: {why}"),
                format!("set vm.nr_hugepages to {wanted}"),
            )
        };
        let more = before + wanted - free;
        fs::write(COUNT, more.to_string())
            .map_err(|error| refused(format!("{COUNT} cannot be set: {error}")))?;
        let pages = Self {
            before: Some(before),
        };
        if self::free()? < wanted {
            // What is scattered is put together, as far as the kernel can; then once more.
            let _ = fs::write(COMPACT, "1");
            let _ = fs::write(COUNT, more.to_string());
        }
        let found = self::free()?;
        if found < wanted {
            return Err(refused(format!(
                "of {wanted} the machine has memory for {found}"
            )));
        }
        Ok(pages)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        if let Some(before) = self.before
            && let Err(error) = fs::write(COUNT, before.to_string())
        {
            eprintln!("xtask: {COUNT} was {before} and stays changed: {error}");
        }
    }
}

fn total() -> Result<u64, Stop> {
    let text = fs::read_to_string(COUNT).map_err(|error| {
        Stop::not_run(
            format!("NO HUGE PAGES: {COUNT}: {error}"),
            "run on a kernel with huge pages",
        )
    })?;
    Ok(text.trim().parse().unwrap_or(0))
}

fn free() -> Result<u64, Stop> {
    let path = "/proc/meminfo";
    let text = fs::read_to_string(path).about(path)?;
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.split_whitespace().next())
            .and_then(|value| value.parse().ok())
            .unwrap_or(0)
    };
    match field("Hugepagesize:") {
        2048 => Ok(u64::saturating_sub(
            field("HugePages_Free:"),
            field("HugePages_Rsvd:"),
        )),
        _ => Ok(0),
    }
}
