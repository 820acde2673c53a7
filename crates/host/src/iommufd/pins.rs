//! Where mappings end and how often memory is pinned, for who checks that.

use std::sync::Arc;

use iogate_dma::{Access, Iova, Span};
use iogate_space::Segment;

use super::{Context, PAGE_SIZE};
use crate::{Error, FileId, Host, Ioas};

impl Host {
    /// Where the accesses to `span` end of a device that uses page table `id`,
    /// as far as they do. ENOENT.
    pub fn hwpt_translate(&self, file: FileId, id: u32, span: Span) -> Result<Vec<Segment>, Error> {
        let state = self.lock();
        let context = state.iommufds.get(&file).ok_or(Context::NONE)?;
        let ioas = context.objects.hwpt(id)?.ioas;
        let space = Arc::clone(&context.objects.ioas(ioas)?.space);
        drop(state);
        Ok(translate(self, &space, span))
    }

    /// How often the page that has each byte of `pages` is pinned by mappings
    /// and accesses of all iommufds.
    pub fn pin_counts(&self, pages: &[Segment]) -> Vec<u32> {
        let wanted: Vec<u64> = pages.iter().flat_map(numbers).collect();
        let mut counts = vec![0_u32; wanted.len()];
        let mut count = |segments: &[Segment]| {
            let mut last = None;
            for number in segments.iter().flat_map(numbers) {
                if last == Some(number) {
                    continue;
                }
                last = Some(number);
                for (at, entry) in wanted.iter().zip(&mut counts) {
                    if *at == number {
                        *entry = entry.saturating_add(1);
                    }
                }
            }
        };
        let state = self.lock();
        for ioas in state.iommufds.values().flat_map(|one| one.objects.ioases()) {
            for (span, _) in ioas.areas() {
                ioas.space.space().with_area(span.first(), |area| {
                    if let Some(segments) = area.payload.segments() {
                        count(segments);
                    }
                });
            }
            for page in ioas.users.pages() {
                count(page.segments());
            }
        }
        counts
    }
}

/// The numbers of the pages that a segment has bytes of.
fn numbers(segment: &Segment) -> impl Iterator<Item = u64> + use<> {
    let last = segment
        .output
        .saturating_add(segment.length.saturating_sub(1));
    let page = |at: u64| at.checked_div(PAGE_SIZE).unwrap_or(0);
    page(segment.output)..=page(last)
}

fn translate(host: &Host, space: &Ioas, span: Span) -> Vec<Segment> {
    let mut passage = host.config.gate.join();
    let guard = passage.enter();
    let mut segments = Vec::new();
    let mut from = Some(span.first());
    let lookup = |span| {
        let read = space.space().lookup(&guard, span, Access::Read);
        read.or_else(|_| space.space().lookup(&guard, span, Access::Write))
    };
    while let Some(first) = from
        && let Some(rest) = Span::new(first, span.last())
        && let Ok(hit) = lookup(rest)
    {
        segments.push(Segment {
            length: hit.length,
            output: hit.output,
        });
        from = first.0.checked_add(hit.length).map(Iova);
    }
    segments
}
