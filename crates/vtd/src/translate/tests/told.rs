//! What is traced.

use std::sync::{Arc, Mutex};

use iogate_dma::Access;
use iogate_paging::Permissions;
use iogate_paging::vtd::{Levels, SecondStage};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

use super::world::*;
use crate::invalidate::Invalidation;

/// Keeps name and fields of events.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<String>>>);

impl Subscriber for Kept {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.name().starts_with("vtd_")
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, event: &Event<'_>) {
        let mut line = Line(event.metadata().name().to_owned());
        event.record(&mut line);
        self.0.lock().unwrap().push(line.0);
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.0 += &format!(" {}={value:?}", field.name());
    }
}

#[test]
fn walks_are_told_and_so_is_a_use_of_what_changed_without_an_invalidation() {
    let mut world = World::legacy();
    let map = (0x1000, 0x8000, 0x1000, Permissions::ALL, 12);
    let root = world.tables(SecondStage::new(Levels::Four), &[map]);
    world.context(root | 1, 0x0702);
    let kept = Kept::default();
    // While there is one subscriber only, that of the thread that comes first to
    // an event decides for all; other tests have none.
    let _second = tracing::Dispatch::new(Kept::default());
    tracing::subscriber::with_default(kept.clone(), || {
        let lines = || std::mem::take(&mut *kept.0.lock().unwrap());
        let walked = "vtd_page_walk source=0000:00:02.0 domain=7 iova=0x1000 access=read \
                      gpa=0x8000 mask=0xfff rights=rw result=0";
        world.access(0x1000, Access::Read).unwrap();
        assert_eq!(lines(), [walked]);
        world.access(0x1000, Access::Read).unwrap();
        assert_eq!(lines(), [""; 0]);
        let mut table = root;
        for _ in 0..3 {
            table = world.ram.get(table) & 0xf_ffff_f000;
        }
        world.ram.set(table + 8, &[0x9001]);
        world.access(0x1008, Access::Write).unwrap();
        let stale = "vtd_stale_use source=0000:00:02.0 iova=0x1008 gpa=0x8008 rights=rw";
        assert_eq!(lines(), [format!("{stale} now=0x9008 ro")]);
        world.ram.set(CONTEXT + 0x100, &[0]);
        world.access(0x1008, Access::Write).unwrap();
        assert_eq!(lines(), [format!("{stale} now=nothing")]);
        world.ram.set(CONTEXT + 0x100, &[root | 1]);
        world.unit.invalidate(&[Invalidation::IotlbGlobal]);
        lines();
        world.access(0x1008, Access::Write).unwrap_err();
        let refused = "vtd_page_walk source=0000:00:02.0 domain=7 iova=0x1008 access=write \
                       result=";
        assert!(lines()[0].starts_with(refused));
    });
}
