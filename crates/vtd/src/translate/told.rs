//! What is traced of translations. Nothing is looked at while nobody listens.

use std::ops::ControlFlow;

use iogate_dma::{Mapping, Privilege, Request, Rights, Span};
use tracing::level_filters::LevelFilter;

use super::{Domain, Page, Refusal};
use crate::Vtd;

/// Tables were walked.
#[inline]
pub(super) fn walk(request: &Request, domain: &Domain, found: &Result<Page, Refusal>) {
    if LevelFilter::current() >= LevelFilter::INFO {
        tell_walk(request, domain, found);
    }
}

#[cold]
fn tell_walk(request: &Request, domain: &Domain, found: &Result<Page, Refusal>) {
    let (source, iova) = (request.source, request.span.first());
    let (domain, access) = (domain.head.id(), request.access);
    match found {
        Ok(page) => tracing::event!(
            name: "vtd_page_walk",
            target: "iogate",
            tracing::Level::INFO,
            %source,
            domain,
            %iova,
            %access,
            gpa = format_args!("{:#x}", page.output),
            mask = format_args!("{:#x}", page.mask),
            rights = %page.permissions.rights(request.privilege),
            result = 0,
        ),
        Err(refusal) => tracing::event!(
            name: "vtd_page_walk",
            target: "iogate",
            tracing::Level::INFO,
            %source,
            domain,
            %iova,
            %access,
            result = refusal.reason.text(),
        ),
    }
}

impl Vtd {
    /// A remembered page is used.
    #[inline]
    pub(super) fn tell_use(&self, request: &Request, page: &Page) {
        if LevelFilter::current() >= LevelFilter::INFO {
            self.tell_stale_use(request, page);
        }
    }

    /// Tells if structures or tables say something else by now.
    #[cold]
    fn tell_stale_use(&self, request: &Request, page: &Page) {
        let rights = page.permissions.rights(request.privilege);
        'same: {
            // The last field is found out only if somebody listens, and may
            // find that there is nothing to tell.
            tracing::event!(
                name: "vtd_stale_use",
                target: "iogate",
                tracing::Level::INFO,
                source = %request.source,
                iova = %request.span.first(),
                gpa = format_args!("{:#x}", page.output),
                %rights,
                now = %match self.now(request) {
                    Some((output, now)) if output == page.output && now.covers(rights) => break 'same,
                    _ if request.privilege == Privilege::Supervisor => break 'same,
                    Some((output, now)) => format!("{output:#x} {now}"),
                    None => "nothing".to_owned(),
                },
            );
        }
    }

    /// Where the request would lead by what memory says now.
    fn now(&self, request: &Request) -> Option<(u64, Rights)> {
        let domain = self.domain_now(request.source)?;
        let address = request.span.first();
        let mut found = None;
        let span = Span::new(address, address)?;
        self.scan_domain(&domain, span, usize::MAX, &mut |mapping: Mapping| {
            found = Some((mapping.output, mapping.rights));
            ControlFlow::Break(())
        });
        found
    }
}
