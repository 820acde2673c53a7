//! Translation and mapping of 4 KiB areas beside two structures that others
//! use: a `BTreeMap` searched by range, and vm-memory's `Iotlb`.
//!
//! Neither of those can be read while it is written, so a user adds a lock;
//! that lock is not measured here. An array of one 16-byte entry a page is the
//! floor: what the machine's memory allows at the time. The end of the output
//! sets the figures side by side and then lets two threads translate at once.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use criterion::Criterion;
use iogate_dma::{Access, Gate, InFlight, Iova, Rights, Span};
use iogate_space::{AddressSpace, Segment};
use vm_memory::iommu::Iotlb;
use vm_memory::{GuestAddress, Permissions};

const PAGE: u64 = 4096;
/// Bytes of an access.
const ACCESS: u64 = 64;
const SIZES: [u64; 2] = [1, 1 << 20];

const OURS: &str = "iogate";
const OURS_ENTERING: &str = "iogate, entering the gate for each";
const TREE: &str = "BTreeMap";
const VM_MEMORY: &str = "vm-memory Iotlb";
const ARRAY: &str = "array";

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    /// A page of `count`, a power of 2.
    fn page(&mut self, count: u64) -> u64 {
        (self.next() & (count - 1)) * PAGE
    }
}

/// Where each page goes: one cycle through all of them, so that a chain of
/// translations visits every page, and no two pages make a run.
fn outputs(count: u64) -> Vec<u64> {
    let mut outputs: Vec<u64> = (0..count).collect();
    let mut random = Random(count);
    for last in (1..count).rev() {
        outputs.swap(last as usize, (random.next() % last) as usize);
    }
    outputs.iter().map(|page| page * PAGE).collect()
}

fn map(space: &AddressSpace<u64>, iova: u64, output: u64) {
    let page = Span::with_length(Iova(iova), PAGE).unwrap();
    space.map(page, Rights::READ_WRITE, output).unwrap();
}

fn fill(space: &AddressSpace<u64>, iova: u64, output: u64) {
    let length = PAGE;
    space
        .fill(Iova(iova), &[Segment { length, output }])
        .unwrap();
}

fn translate(space: &AddressSpace<u64>, guard: &InFlight<'_>, iova: u64) -> u64 {
    let span = Span::with_length(Iova(iova), ACCESS).unwrap();
    space.lookup(guard, span, Access::Read).unwrap().output
}

/// Offset of the last byte, output, whether it may be read and written.
type Tree = BTreeMap<u64, (u64, u64, bool, bool)>;

fn insert_in_tree(tree: &mut Tree, iova: u64, output: u64) {
    tree.insert(iova, (PAGE - 1, output, true, true));
}

fn translate_in_tree(tree: &Tree, iova: u64) -> u64 {
    let (first, (last, output, read, _)) = tree.range(..=iova).next_back().unwrap();
    let offset = iova - first;
    assert!(offset + (ACCESS - 1) <= *last && *read);
    output + offset
}

fn insert_in_iotlb(iotlb: &mut Iotlb, iova: u64, output: u64) {
    let (iova, output) = (GuestAddress(iova), GuestAddress(output));
    iotlb
        .set_mapping(iova, output, PAGE as usize, Permissions::ReadWrite)
        .unwrap();
}

fn translate_in_iotlb(iotlb: &Iotlb, iova: u64) -> u64 {
    let found = Iotlb::lookup(
        iotlb,
        GuestAddress(iova),
        ACCESS as usize,
        Permissions::Read,
    );
    found.unwrap().next().unwrap().base.0
}

fn independent(count: u64, times: u64, mut translate: impl FnMut(u64) -> u64) -> Duration {
    let mut random = Random(1);
    let mut sum = 0_u64;
    let start = Instant::now();
    for _ in 0..times {
        sum = sum.wrapping_add(translate(random.page(count)));
    }
    black_box(sum);
    start.elapsed()
}

fn dependent(times: u64, mut translate: impl FnMut(u64) -> u64) -> Duration {
    let mut at = 0;
    let start = Instant::now();
    for _ in 0..times {
        at = translate(at);
    }
    black_box(at);
    start.elapsed()
}

fn pairs(count: u64, times: u64, mut pair: impl FnMut(u64)) -> Duration {
    let mut random = Random(2);
    let start = Instant::now();
    for _ in 0..times {
        pair(random.page(count));
    }
    start.elapsed()
}

/// Nanoseconds of each sample, by what was done and who did it.
#[derive(Default)]
struct Samples(RefCell<BTreeMap<(String, &'static str), Vec<f64>>>);

impl Samples {
    fn measure(
        &self,
        criterion: &mut Criterion,
        what: &str,
        who: &'static str,
        mut run: impl FnMut(u64) -> Duration,
    ) {
        let key = (what.to_owned(), who);
        criterion.bench_function(&format!("{what}/{who}"), |bencher| {
            bencher.iter_custom(|times| {
                let took = run(times);
                let each = took.as_secs_f64() * 1e9 / times as f64;
                let mut samples = self.0.borrow_mut();
                samples.entry(key.clone()).or_default().push(each);
                took
            });
        });
    }

    fn lookups(
        &self,
        criterion: &mut Criterion,
        count: u64,
        who: &'static str,
        translate: impl Fn(u64) -> u64,
    ) {
        let what = format!("independent, {count} areas");
        self.measure(criterion, &what, who, |times| {
            independent(count, times, &translate)
        });
        let what = format!("dependent, {count} areas");
        self.measure(criterion, &what, who, |times| dependent(times, &translate));
    }

    fn pairs(
        &self,
        criterion: &mut Criterion,
        count: u64,
        who: &'static str,
        mut pair: impl FnMut(u64),
    ) {
        let what = format!("unmap and map, {count} areas");
        self.measure(criterion, &what, who, |times| {
            pairs(count, times, &mut pair)
        });
    }

    /// The best sample and the median.
    fn figures(&self, what: &str, who: &'static str) -> Option<(f64, f64)> {
        let mut samples = self.0.borrow().get(&(what.to_owned(), who))?.clone();
        samples.sort_by(f64::total_cmp);
        Some((*samples.first()?, samples[samples.len() / 2]))
    }

    fn print(&self) {
        println!("\nns: best, median; and the median as a multiple of {OURS}'s");
        let mut whats: Vec<String> = self.0.borrow().keys().map(|key| key.0.clone()).collect();
        whats.dedup();
        for what in &whats {
            let Some((_, ours)) = self.figures(what, OURS) else {
                continue;
            };
            println!("{what}");
            for who in [OURS, OURS_ENTERING, TREE, VM_MEMORY, ARRAY] {
                if let Some((best, median)) = self.figures(what, who) {
                    let ratio = median / ours;
                    println!("  {who:36} {best:8.1} {median:8.1} {ratio:6.1}");
                }
            }
        }
    }
}

fn bench_ours(samples: &Samples, criterion: &mut Criterion, count: u64) {
    let gate = Arc::new(Gate::new());
    let space = AddressSpace::new(Arc::clone(&gate));
    for (page, output) in (0..).zip(outputs(count)) {
        map(&space, page * PAGE, output);
        fill(&space, page * PAGE, output);
    }
    {
        let mut worker = gate.join();
        let guard = worker.enter();
        samples.lookups(criterion, count, OURS, |iova| {
            translate(&space, &guard, iova)
        });
    }
    let worker = RefCell::new(gate.join());
    samples.lookups(criterion, count, OURS_ENTERING, |iova| {
        translate(&space, &worker.borrow_mut().enter(), iova)
    });
    samples.pairs(criterion, count, OURS, |iova| {
        space.unmap(Iova(iova)).unwrap();
        map(&space, iova, iova);
    });
    for page in 0..count {
        fill(&space, page * PAGE, page * PAGE);
    }
    let what = format!("unmap, map and fill, {count} areas");
    samples.measure(criterion, &what, OURS, |times| {
        pairs(count, times, |iova| {
            space.unmap(Iova(iova)).unwrap();
            map(&space, iova, iova);
            fill(&space, iova, iova);
        })
    });
}

fn bench_tree(samples: &Samples, criterion: &mut Criterion, count: u64) {
    let mut tree = Tree::new();
    for (page, output) in (0..).zip(outputs(count)) {
        insert_in_tree(&mut tree, page * PAGE, output);
    }
    samples.lookups(criterion, count, TREE, |iova| {
        translate_in_tree(&tree, iova)
    });
    samples.pairs(criterion, count, TREE, |iova| {
        tree.remove(&iova).unwrap();
        insert_in_tree(&mut tree, iova, iova);
    });
}

fn bench_iotlb(samples: &Samples, criterion: &mut Criterion, count: u64) {
    let mut iotlb = Iotlb::new();
    for (page, output) in (0..).zip(outputs(count)) {
        insert_in_iotlb(&mut iotlb, page * PAGE, output);
    }
    samples.lookups(criterion, count, VM_MEMORY, |iova| {
        translate_in_iotlb(&iotlb, iova)
    });
    samples.pairs(criterion, count, VM_MEMORY, |iova| {
        iotlb.invalidate_mapping(GuestAddress(iova), PAGE as usize);
        // Apart from its neighbours, which it would be merged with.
        insert_in_iotlb(&mut iotlb, iova, iova ^ (iova >> 12 << 20));
    });
}

fn bench_array(samples: &Samples, criterion: &mut Criterion, count: u64) {
    let entries: Vec<(u64, u64)> = outputs(count).iter().map(|&output| (output, 3)).collect();
    samples.lookups(criterion, count, ARRAY, |iova| {
        let (output, rights) = entries[(iova / PAGE) as usize];
        assert!(rights & 1 != 0);
        output + iova % PAGE
    });
}

/// Translations a second of `threads` threads together, entering the gate for
/// each: the best of several rounds, as other programs take CPUs away.
fn together(threads: usize, count: u64) -> f64 {
    const TIMES: u64 = 2_000_000;
    let gate = Arc::new(Gate::new());
    let space = AddressSpace::new(Arc::clone(&gate));
    for (page, output) in (0..).zip(outputs(count)) {
        map(&space, page * PAGE, output);
        fill(&space, page * PAGE, output);
    }
    let round = || {
        let barrier = Barrier::new(threads);
        let one = || {
            let mut worker = gate.join();
            barrier.wait();
            independent(count, TIMES, |iova| {
                translate(&space, &worker.enter(), iova)
            })
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(one)).collect();
            let took = workers.into_iter().map(|worker| worker.join().unwrap());
            took.map(|took| TIMES as f64 / took.as_secs_f64()).sum()
        })
    };
    (0..20).map(|_| round()).fold(0.0, f64::max)
}

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2))
        .sample_size(30)
        .configure_from_args();
    let samples = Samples::default();
    for count in SIZES {
        bench_ours(&samples, &mut criterion, count);
        bench_tree(&samples, &mut criterion, count);
        bench_iotlb(&samples, &mut criterion, count);
        bench_array(&samples, &mut criterion, count);
    }
    criterion.final_summary();
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    samples.print();
    for count in SIZES {
        let (one, two) = (together(1, count), together(2, count));
        println!(
            "{count} areas: {:.0} million translations/s by one thread, {:.0} by two: {:.2} times",
            one / 1e6,
            two / 1e6,
            two / one
        );
    }
}
