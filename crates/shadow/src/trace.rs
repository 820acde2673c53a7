//! The events of `docs/trace.md`.

use iogate_dma::{Change, Partial, Source};

use crate::diff::span;
use crate::domain::Seen;
use crate::follower::{DomainId, Follower};
use crate::spans::Spans;

/// A domain's tables were looked at.
pub(crate) fn scan(source: Source, domain: DomainId, dirty: &Spans, seen: &Seen) {
    let result = match (seen.missed.is_empty(), seen.is_news()) {
        (false, _) => "limit",
        (true, false) => "unchanged",
        (true, true) => "changed",
    };
    for span in dirty.iter() {
        tracing::event!(
            name: "vtd_replay_scan",
            target: "iogate",
            tracing::Level::INFO,
            source = %source,
            domain = domain.number,
            first = %span.first(),
            last = %span.last(),
            runs = seen.runs,
            result,
        );
    }
}

/// A source is in another domain now.
pub(crate) fn switch(source: Source, from: Option<DomainId>, to: Option<DomainId>) {
    tracing::event!(
        name: "vtd_replay_switch",
        target: "iogate",
        tracing::Level::INFO,
        source = %source,
        from = from.map(|domain| domain.number),
        domain = to.map(|domain| domain.number),
    );
}

/// A listener is handed everything, or what stood behind outputs changed.
pub(crate) fn replay(follower: &Follower) {
    tracing::event!(
        name: "vtd_replay",
        target: "iogate",
        tracing::Level::INFO,
        source = %follower.source,
        domain = follower.domain.map(|domain| domain.number),
        first = %follower.section.first(),
        last = %follower.section.last(),
        result = follower.failure().map_or(0, |failure| failure.errno),
    );
}

/// A listener was told of changes.
pub(crate) fn batch(follower: &Follower, changes: &[Change], result: Result<(), Partial>) {
    let applied = result.map_or_else(|partial| partial.applied, |()| changes.len());
    for (index, change) in changes.iter().enumerate() {
        let Some(result) = (match result {
            Err(partial) if index == applied => Some(partial.errno),
            _ => (index < applied).then_some(0),
        }) else {
            return;
        };
        let whose = (follower.source, follower.domain.map(|domain| domain.number));
        let span = span(change);
        match change {
            Change::Map(mapping) => tracing::event!(
                name: "vtd_replay_map",
                target: "iogate",
                tracing::Level::INFO,
                source = %whose.0,
                domain = whose.1,
                first = %span.first(),
                last = %span.last(),
                output = format_args!("{:#x}", mapping.output),
                rights = %mapping.rights,
                result,
            ),
            Change::Unmap(_) => tracing::event!(
                name: "vtd_replay_unmap",
                target: "iogate",
                tracing::Level::INFO,
                source = %whose.0,
                domain = whose.1,
                first = %span.first(),
                last = %span.last(),
                result,
            ),
        }
    }
}
