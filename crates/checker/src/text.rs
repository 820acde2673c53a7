//! Reports as a person reads them.

use std::fmt::Write as _;
use std::time::Duration;

use iogate_dma::{Access, FaultReason, Source};
use iogate_host::Actor;

use crate::StackId;
use crate::cause::Cause;
use crate::checker::Outside;
use crate::history::{Deed, Known, Mapping};

/// A duration in the unit that leaves two to four digits.
pub(crate) fn span_of_time(time: Duration) -> String {
    match time.as_micros() {
        us @ 0..1_000 => format!("{us} us"),
        us @ 1_000..10_000_000 => format!("{} ms", us / 1_000),
        us => format!("{} s", us / 1_000_000),
    }
}

/// "nvme 0000:01:00.0".
pub(crate) fn device(source: Source, outside: &dyn Outside) -> String {
    match outside.model(source.function()) {
        Some(model) => format!("{model} {source}"),
        None => source.to_string(),
    }
}

fn who(by: Option<Actor>, outside: &dyn Outside) -> String {
    let Some(actor) = by else {
        return String::new();
    };
    match outside.thread_name(actor) {
        Some(name) => format!(", thread {} \"{}\"", actor.thread, name.escape_debug()),
        None => format!(", thread {}", actor.thread),
    }
}

/// The first line of a cause, without a number.
pub(crate) fn headline(cause: &Cause, outside: &dyn Outside) -> String {
    let fault = &cause.fault;
    let verb = match fault.access {
        Access::Read => "read",
        Access::Write => "wrote",
        Access::Atomic => "did an atomic operation on",
        Access::Execute => "fetched",
    };
    let bytes = match fault.span.length() {
        Some(1) => "1 byte".to_owned(),
        Some(bytes) => format!("{bytes} bytes"),
        None => "2^64 bytes".to_owned(),
    };
    format!(
        "{} {verb} {bytes} at IOVA {}: {}",
        device(fault.source_id, outside),
        fault.span.first(),
        fault.reason
    )
}

/// The whole text of a cause, several lines, no newline at the end.
pub(crate) fn cause(cause: &Cause, outside: &dyn Outside) -> String {
    let mut text = format!("iogate: DMA fault {}", cause.number);
    if cause.times > 1 {
        let _ = write!(text, " ({} times)", cause.times);
    }
    let _ = write!(text, ": {}", headline(cause, outside));
    frames(&mut text, "access", cause.stack, outside);
    let ago = |deed: &Deed| span_of_time(cause.at.saturating_duration_since(deed.at));
    let mapped = |text: &mut String, mapping: &Mapping, word: &str| {
        let _ = write!(
            text,
            "\n  {word:<9} {} {}, {} ago, {}{}",
            mapping.span,
            mapping.rights,
            ago(&mapping.mapped),
            mapping.mapped.via.name(),
            who(mapping.mapped.by, outside)
        );
        frames(text, "", mapping.mapped.stack, outside);
        if let Some(deed) = &mapping.revoked {
            let _ = write!(
                text,
                "\n  memory    taken away {} before, {}{}: a real device would still reach it",
                ago(deed),
                deed.via.name(),
                who(deed.by, outside)
            );
        }
    };
    match &cause.known {
        Known::Live(mapping) => {
            mapped(&mut text, mapping, "mapped");
            if cause.fault.reason == FaultReason::Revoked && mapping.revoked.is_none() {
                text.push_str("\n  memory    gone: its process ended, or its file became shorter");
            }
        }
        Known::Gone(gone) => {
            mapped(&mut text, &gone.mapping, "mapped");
            let _ = write!(
                text,
                "\n  unmapped  {} before, {}{}",
                ago(&gone.unmapped),
                gone.unmapped.via.name(),
                who(gone.unmapped.by, outside)
            );
            frames(&mut text, "", gone.unmapped.stack, outside);
        }
        Known::Never(nearest) => {
            if cause.history_is_partial {
                text.push_str("\n  history   never mapped, or unmapped before the history begins");
            }
            if let Some(nearest) = nearest {
                mapped(&mut text, nearest, "nearest");
            }
        }
    }
    if let Some(hint) = hint(cause.fault.reason) {
        let _ = write!(text, "\n  remedy    {hint}");
    }
    if let Some(answer) = &cause.answer {
        let _ = write!(text, "\n  device    {answer}");
    }
    text
}

/// Frames of one stack that a person is shown.
const SHOWN: usize = 8;

/// The frames of a stack, one a line. `word` says what the stack is of, where
/// no line before does.
fn frames(text: &mut String, word: &str, stack: Option<StackId>, outside: &dyn Outside) {
    let Some(stack) = stack else {
        return;
    };
    if !word.is_empty() {
        let _ = write!(text, "\n  {word:<9} after the write of a register by");
    }
    for frame in outside.frames(stack).iter().take(SHOWN) {
        let function = frame.function.as_deref().unwrap_or("?");
        let _ = write!(text, "\n            {function}");
        let _ = match (&frame.file, frame.line) {
            (Some(file), Some(line)) => write!(text, " {file}:{line}"),
            _ => write!(text, " {:#x} ({})", frame.address, frame.module),
        };
    }
}

fn hint(reason: FaultReason) -> Option<&'static str> {
    match reason {
        FaultReason::NotMaster => {
            Some("set Bus Master Enable: bit 2 of the command register, config offset 0x04")
        }
        FaultReason::Physical => Some(
            "give the device an IOMMU: a session knows what is mapped, not where the kernel keeps it",
        ),
        FaultReason::Blocked => {
            Some("put the group into a container with an IOMMU, or attach the device to an IOAS")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_keep_two_to_four_digits() {
        assert_eq!(span_of_time(Duration::from_micros(812)), "812 us");
        assert_eq!(span_of_time(Duration::from_millis(812)), "812 ms");
        assert_eq!(span_of_time(Duration::from_secs(12)), "12 s");
    }
}
