//! A register read, client to server and back, beside the `vfio_user` crate
//! and beside the same bytes sent to and fro by plain calls: what the kernel
//! takes. Both ends on one CPU, then wherever the kernel puts them. Behind it,
//! mappings sent to a remote device by the listener of an address space.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::Criterion;
use iogate_dma::{Change, Gpa, Iova, Listener, Mapping, Rights, Span};
use iogate_vfio_user::{
    Client, ClientOptions, Connection, Device, DeviceInfo, DmaMap, Errno, Held, Irq, Peer, Region,
    RemoteListener, ServerOptions, SetIrqs,
};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use vfio_bindings::bindings::vfio::vfio_region_info;

const OURS: &str = "iogate";
const CRATE: &str = "vfio_user 0.1.7";
const BARE: &str = "bare socket";

const WORD: usize = 8;
/// Bytes of a read request and of its reply.
const REQUEST: usize = 32;
const REPLY: usize = 32 + WORD;

/// A region of registers that says how often it was read.
struct Registers;

impl Device for Registers {
    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            regions: 1,
            irqs: 0,
            reset: false,
            pci: true,
        }
    }
    fn region(&self, _: u32) -> Result<Region<'_>, Errno> {
        Ok(Region {
            size: 4096,
            rights: Rights::READ_WRITE,
            ..Region::default()
        })
    }
    fn region_read(&self, _: u32, offset: u64, into: &mut [u8]) -> Result<(), Errno> {
        into.copy_from_slice(&offset.to_ne_bytes());
        Ok(())
    }
    fn region_write(&self, _: u32, _: u64, _: &[u8]) -> Result<(), Errno> {
        Ok(())
    }
    fn irq(&self, _: u32) -> Result<Irq, Errno> {
        Err(Errno::INVAL)
    }
    fn set_irqs(&self, _: &Peer, _: SetIrqs<'_>) -> Result<(), Errno> {
        Err(Errno::INVAL)
    }
    fn dma_map(&self, _: &Arc<Peer>, _: DmaMap) -> Result<(), Errno> {
        Ok(())
    }
    fn dma_unmap(&self, _: &Peer, _: Span<Iova>) {}
    fn reset(&self, _: &Peer) -> Result<(), Errno> {
        Ok(())
    }
}

impl vfio_user::ServerBackend for Registers {
    fn region_read(&mut self, _: u32, offset: u64, into: &mut [u8]) -> std::io::Result<()> {
        into.copy_from_slice(&offset.to_ne_bytes());
        Ok(())
    }
    fn region_write(&mut self, _: u32, _: u64, _: &[u8]) -> std::io::Result<()> {
        Ok(())
    }
    fn dma_map(
        &mut self,
        _: vfio_user::DmaMapFlags,
        _: u64,
        _: u64,
        _: u64,
        _: Option<File>,
    ) -> std::io::Result<()> {
        Ok(())
    }
    fn dma_unmap(&mut self, _: vfio_user::DmaUnmapFlags, _: u64, _: u64) -> std::io::Result<()> {
        Ok(())
    }
    fn reset(&mut self) -> std::io::Result<()> {
        Ok(())
    }
    fn set_irqs(&mut self, _: u32, _: u32, _: u32, _: u32, _: Vec<File>) -> std::io::Result<()> {
        Ok(())
    }
}

fn ours() -> Client {
    let (ours, theirs) = UnixStream::pair().unwrap();
    std::thread::spawn(move || {
        Connection::new(theirs.into(), ServerOptions::default()).serve(&Registers)
    });
    Client::from_socket(ours.into(), ClientOptions::default()).unwrap()
}

fn theirs() -> vfio_user::Client {
    let path = std::env::temp_dir().join(format!("iogate-bench-{}", std::process::id()));
    let listener = UnixListener::bind(&path).unwrap();
    let region = vfio_user::ServerRegion {
        region_info: vfio_region_info {
            argsz: 32,
            flags: 3,
            size: 4096,
            ..Default::default()
        },
        sparse_areas: Vec::new(),
        mmap_fd: None,
    };
    let server = vfio_user::Server::from_owned_fd(listener.into(), false, Vec::new(), vec![region]);
    std::thread::spawn(move || server.run(&mut Registers));
    let client = vfio_user::Client::new(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    client
}

fn bare() -> UnixStream {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    std::thread::spawn(move || {
        let mut request = [0; REQUEST];
        while theirs.read_exact(&mut request).is_ok() {
            let _ = theirs.write_all(&[0; REPLY]);
        }
    });
    ours
}

/// Reads once.
type Reader = Box<dyn FnMut()>;

/// Who reads, and how.
fn readers() -> [(&'static str, Reader); 3] {
    let client = ours();
    let mut theirs = theirs();
    let mut socket = bare();
    [
        (
            OURS,
            Box::new(move || {
                let mut word = [0; WORD];
                client.region_read(0, 8, &mut word).unwrap();
                assert_eq!(word, 8_u64.to_ne_bytes());
            }),
        ),
        (
            CRATE,
            Box::new(move || {
                let mut word = [0; WORD];
                theirs.region_read(0, 8, &mut word).unwrap();
                assert_eq!(word, 8_u64.to_ne_bytes());
            }),
        ),
        (
            BARE,
            Box::new(move || {
                socket.write_all(&[0; REQUEST]).unwrap();
                socket.read_exact(&mut [0; REPLY]).unwrap();
            }),
        ),
    ]
}

fn reads(criterion: &mut Criterion, what: &str) {
    for (who, mut read) in readers() {
        criterion.bench_function(&format!("{what}/{who}"), |bencher| bencher.iter(&mut read));
    }
}

/// The three by turns, so that what else the machine does falls on all alike:
/// microseconds of a read, the best round and the median, and the median as a
/// multiple of a bare socket's.
fn side_by_side(what: &str) {
    const ROUNDS: usize = 300;
    const READS: u32 = 200;
    let mut readers = readers();
    let mut rounds = [const { Vec::new() }; 3];
    for _ in 0..ROUNDS {
        for ((_, read), rounds) in readers.iter_mut().zip(&mut rounds) {
            let start = Instant::now();
            for _ in 0..READS {
                read();
            }
            rounds.push(start.elapsed().as_secs_f64() * 1e6 / f64::from(READS));
        }
    }
    for rounds in &mut rounds {
        rounds.sort_by(f64::total_cmp);
    }
    let floor = (rounds[2][0], rounds[2][ROUNDS / 2]);
    println!("{what}: µs, best and median, each with its multiple of a bare socket's");
    for ((who, _), rounds) in readers.iter().zip(&rounds) {
        let (best, median) = (rounds[0], rounds[ROUNDS / 2]);
        let (over_best, over_median) = (best / floor.0, median / floor.1);
        println!("  {who:16} {best:7.2} {over_best:5.2} {median:9.2} {over_median:5.2}");
    }
}

/// How long `pages` pages take to be told to a remote device, and back.
fn follow(pages: u64, stride: u64) -> (Duration, Duration) {
    let file: OwnedFd = File::open("/dev/null").unwrap().into();
    let backing = move |run: Span<Gpa>, tell: &mut dyn FnMut(Span<Gpa>, Held<'_>)| {
        tell(run, Held::File(file.as_fd(), run.first().0));
    };
    let listener = RemoteListener::new(Arc::new(ours()), backing);
    let changes: Vec<_> = (0..pages)
        .map(|page| {
            Change::Map(Mapping {
                span: Span::with_length(Iova(page << 12), 4096).unwrap(),
                output: page * stride,
                rights: Rights::READ_WRITE,
            })
        })
        .collect();
    let start = Instant::now();
    listener
        .apply(&changes[..changes.len().min(65_535)])
        .unwrap();
    let mapped = start.elapsed();
    let start = Instant::now();
    listener.apply(&[Change::Unmap(Span::whole())]).unwrap();
    (mapped, start.elapsed())
}

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(1))
        .sample_size(20)
        .configure_from_args();
    let everywhere = sched_getaffinity(None).unwrap();
    let mut one = CpuSet::new();
    let first = (0..CpuSet::MAX_CPU).find(|cpu| everywhere.is_set(*cpu));
    one.set(first.unwrap());
    let short = std::env::args().any(|argument| argument == "--test");
    for (what, cpus) in [("any CPU", everywhere), ("one CPU", one)] {
        sched_setaffinity(None, &cpus).unwrap();
        reads(&mut criterion, what);
        if !short {
            side_by_side(what);
        }
    }
    criterion.final_summary();
    if short {
        return;
    }
    let (mapped, unmapped) = follow(65_536, 4096);
    println!("65,536 pages in a row, one CPU: mapped {mapped:?}, unmapped {unmapped:?}");
    let (mapped, unmapped) = follow(65_535, 8192);
    let each = |took: Duration| took.as_secs_f64() * 1e6 / 65_535.0;
    let (mapped, unmapped) = (each(mapped), each(unmapped));
    println!("65,535 pages apart, one CPU: {mapped:.2} µs to map one, {unmapped:.2} to unmap it");
}
