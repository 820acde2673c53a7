//! What devices are refused, told to a person; the guest is told by its unit.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use iogate_dma::{Fault, FaultSink, Source};

/// Lines about one device; a guest may make its devices fault without end.
const LINES: u32 = 20;

/// Says what was refused, on standard error and to the trace.
pub(crate) struct Faults {
    models: BTreeMap<Source, String>,
    counts: Mutex<BTreeMap<Source, u32>>,
}

impl Faults {
    pub(crate) fn new(models: BTreeMap<Source, String>) -> Self {
        Self {
            models,
            counts: Mutex::default(),
        }
    }
}

impl FaultSink for Faults {
    fn fault(&self, fault: &Fault) {
        tracing::event!(
            name: "dma_fault",
            target: "iogate",
            tracing::Level::INFO,
            device = %fault.source_id,
            access = %fault.access,
            iova = %fault.span.first(),
            length = fault.span.last_offset().saturating_add(1),
            reason = %fault.reason,
        );
        let device = fault.source_id.function();
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(device).or_default();
        *count = count.saturating_add(1);
        let count = *count;
        drop(counts);
        let model = self.models.get(&device).map_or("", String::as_str);
        if count <= LINES {
            let place = match fault.walk {
                Some(walk) => format!(
                    " (level {} of the tables, in the one at {})",
                    walk.level, walk.table
                ),
                None => String::new(),
            };
            eprintln!(
                "iogate: {model} {}: {} at {} is refused: {}{place}",
                fault.source_id, fault.access, fault.span, fault.reason
            );
        }
        if count == LINES {
            eprintln!("iogate: {model} {device}: what else it is refused is not told");
        }
    }

    fn answered(&self, _: Source, _: &str) {}
}
