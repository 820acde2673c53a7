//! Frames between a virtio-net and what is behind its socket: a peer of our own, and QEMU.

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use super::{Case, Tier};
use crate::place::Person;
use crate::process::{Job, signal};
use crate::setup::{Bench, Linkage};
use crate::verdict::{About as _, Stop};

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case::new(Tier::Clients, "frames/peer/root".to_owned(), peer),
        Case::new(Tier::Guests, "frames/qemu/root".to_owned(), |bench, log| {
            qemu(bench, log)
        }),
    ]
}

/// The client sends frames and asks nothing more of the device: each comes back a while later, from outside, and has to
/// interrupt it.
fn peer(bench: &Bench, log: &Path) -> Result<(), Stop> {
    let place = bench.place(Person::Root)?;
    let path = place.scratch().join("peer.sock");
    // One of an earlier run.
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).about(path.display())?;
    // It ends with the device's end of the stream.
    std::thread::spawn(move || {
        if let Ok((stream, _)) = listener.accept() {
            let _ = return_frames(stream);
        }
    });
    client(bench, log, &[&path])
}

/// Gives each frame back after a moment, in which the client has fallen asleep.
fn return_frames(mut stream: UnixStream) -> std::io::Result<()> {
    loop {
        let mut length = [0; 4];
        stream.read_exact(&mut length)?;
        let mut frame = vec![0; usize::try_from(u32::from_be_bytes(length)).unwrap_or(0)];
        stream.read_exact(&mut frame)?;
        std::thread::sleep(Duration::from_millis(50));
        stream.write_all(&length)?;
        stream.write_all(&frame)?;
    }
}

/// Two devices, joined by a hub of QEMU's: what one sends, the other receives, both ways.
fn qemu(bench: &Bench, log: &Path) -> Result<(), Stop> {
    let place = bench.place(Person::Root)?;
    let kit = bench.kit()?;
    let scratch = place.scratch();
    let paths = ["a.sock", "b.sock"].map(|name| scratch.join(name));
    let mut words = kit.qemu().into_iter();
    let mut command = place.command(Path::new(&words.next().unwrap_or_default()));
    command.args(words);
    command.args(["-M", "none", "-display", "none", "-nodefaults"]);
    for (name, path) in ["a", "b"].into_iter().zip(&paths) {
        // One of an earlier run.
        let _ = std::fs::remove_file(path);
        let path = path.display();
        command.args([
            "-netdev".to_owned(),
            format!("stream,id={name},server=on,addr.type=unix,addr.path={path}"),
            "-netdev".to_owned(),
            format!("hubport,id=hub-{name},hubid=0,netdev={name}"),
        ]);
    }
    let mut qemu = Job::new(command, log).limit(120).start()?;
    for _ in 0..500 {
        if paths.iter().all(|path| path.exists()) || !qemu.is_running() {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let [one, other] = &paths;
    let seen = client(bench, log, &[one, other]);
    signal(qemu.id(), libc::SIGTERM);
    // Its own end says nothing of the frames.
    let _ = qemu.finish()?;
    seen
}

/// The group `frames` of the C client on a virtio-net for each socket.
fn client(bench: &Bench, log: &Path, sockets: &[&Path]) -> Result<(), Stop> {
    let place = bench.place(Person::Root)?;
    let client = place.program(&bench.c_client(Linkage::Dynamic)?)?;
    let mut command = place.command(&bench.iogate_of(&place)?);
    command.arg("run");
    for socket in sockets {
        let socket = socket.display();
        command.arg(format!("--device=virtio-net,socket={socket}"));
    }
    command.arg("--").arg(client).arg("frames");
    let ended = Job::new(command, log)
        .limit(120)
        .run()?
        .success("client frames")?;
    let there = ended.log.matches("there\n").count();
    let back = ended.log.matches("back\n").count();
    match (there, back) {
        (3, 0) if sockets.len() == 1 => Ok(()),
        (3, 3) if sockets.len() == 2 => Ok(()),
        _ => Err(Stop::failed("not every frame was seen")),
    }
}
