//! virtio-net on a Unix stream, with a peer that speaks as QEMU's
//! `-netdev stream` does.
#![allow(missing_docs)]

mod common;

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use common::virtio::*;
use iogate_devices::Value;

/// A device that runs, its peer, and what wakes its worker.
fn connected(name: &str) -> (Nic, UnixStream, Receiver<()>) {
    let file = format!("iogate-{}-{name}.sock", std::process::id());
    let path = std::env::temp_dir().join(file);
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).unwrap();
    let text = Value::Text(path.to_str().unwrap().to_owned());
    let mut nic = Nic::unstarted(&[("socket", text)]);
    let (peer, _) = listener.accept().unwrap();
    std::fs::remove_file(&path).unwrap();
    peer.set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let (wake, woken) = channel();
    let wake = std::sync::Mutex::new(wake);
    nic.machine.device.attend(std::sync::Arc::new(move || {
        let _ = wake.lock().unwrap().send(());
    }));
    nic.start(1 << 16, 3);
    (nic, peer, woken)
}

fn send(peer: &mut UnixStream, frame: &[u8]) {
    peer.write_all(&(frame.len() as u32).to_be_bytes()).unwrap();
    peer.write_all(frame).unwrap();
}

/// Works as often as the device is woken, until `done`.
fn work_until(nic: &mut Nic, woken: &Receiver<()>, mut done: impl FnMut(&mut Nic) -> bool) {
    while !done(nic) {
        woken.recv_timeout(Duration::from_secs(10)).unwrap();
        let device = nic.machine.device.clone();
        let after = device.work(&mut nic.machine.port);
        nic.machine.finish(after);
    }
}

#[test]
fn frames_go_out_after_their_length_and_come_in_the_same_way() {
    let (mut nic, mut peer, woken) = connected("frames");
    nic.offer_frame(1, 0, DATA, b"to the peer, without the header");
    nic.kick(1);
    let mut bytes = [0; 35];
    peer.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"\0\0\0\x1fto the peer, without the header");

    nic.offer_buffer(0, 7, DATA + 0x8000, 100);
    send(&mut peer, b"from the peer");
    let mut given = Vec::new();
    work_until(&mut nic, &woken, |nic| {
        given.extend(nic.given(0));
        !given.is_empty()
    });
    assert_eq!(given, [(7, 25)]);
    assert_eq!(nic.machine.peek(DATA + 0x800c, 13), b"from the peer");
}

#[test]
fn a_tap_takes_and_gives_whole_frames_without_a_length() {
    let path = std::env::temp_dir().join(format!("iogate-{}-tap", std::process::id()));
    let name = path.to_str().unwrap().to_owned();
    let peer = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    let mut nic = Nic::unstarted(&[("tap", Value::Text(name.clone()))]);
    peer.connect(format!("{name}.tap")).unwrap();
    let timeout = Some(Duration::from_secs(10));
    peer.set_read_timeout(timeout).unwrap();
    let (wake, woken) = channel();
    let wake = std::sync::Mutex::new(wake);
    nic.machine.device.attend(std::sync::Arc::new(move || {
        let _ = wake.lock().unwrap().send(());
    }));
    nic.start(1 << 16, 3);
    nic.offer_frame(1, 0, DATA, b"to the tap");
    nic.kick(1);
    let mut bytes = [0; 64];
    assert_eq!(peer.recv(&mut bytes).unwrap(), 10);
    assert_eq!(&bytes[..10], b"to the tap");
    for (buffer, frame) in [(7, &b"from the tap"[..]), (3, b"and one more")] {
        nic.offer_buffer(0, buffer, DATA + 0x8000, 100);
        peer.send(frame).unwrap();
        let mut given = Vec::new();
        work_until(&mut nic, &woken, |nic| {
            given.extend(nic.given(0));
            !given.is_empty()
        });
        assert_eq!(given, [(u32::from(buffer), 24)]);
        assert_eq!(nic.machine.peek(DATA + 0x800c, 12), frame);
    }
    for end in ["", ".tap"] {
        std::fs::remove_file(format!("{name}{end}")).unwrap();
    }
}

#[test]
fn frames_wait_for_buffers_and_keep_their_order() {
    let (mut nic, mut peer, woken) = connected("order");
    // More than are read ahead.
    let sender = std::thread::spawn(move || {
        for number in 0..600_u32 {
            send(&mut peer, &number.to_le_bytes());
        }
        peer
    });
    // The first wakes, and finds no buffer.
    woken.recv_timeout(Duration::from_secs(10)).unwrap();
    let after = nic.machine.device.clone().work(&mut nic.machine.port);
    nic.machine.finish(after);
    for number in 0..600_u32 {
        nic.offer_buffer(0, 0, DATA + 0x8000, 100);
        nic.kick(0);
        let mut given = nic.given(0);
        work_until(&mut nic, &woken, |nic| {
            given.extend(nic.given(0));
            !given.is_empty()
        });
        let bytes = nic.machine.peek(DATA + 0x800c, 4);
        assert_eq!(bytes, number.to_le_bytes());
    }
    drop(sender.join().unwrap());
}

#[test]
fn the_link_goes_down_with_the_peer() {
    for nonsense in [&[][..], &[0; 4], &[0xff; 4]] {
        let (mut nic, mut peer, woken) = connected("link");
        nic.machine.enable_msix();
        nic.write(0x10, &3_u16.to_le_bytes());
        let [generation] = nic.machine.read(BAR, 0x15);
        peer.write_all(nonsense).unwrap();
        if nonsense.is_empty() {
            peer.shutdown(std::net::Shutdown::Both).unwrap();
        }
        work_until(&mut nic, &woken, |nic| {
            nic.machine.read(BAR, DEVICE + 6) == [0, 0]
        });
        assert_eq!(nic.machine.messages(), [3]);
        assert_eq!(nic.machine.read(BAR, 0x15), [generation + 1]);
        // What is sent now is lost, and given back.
        nic.offer_frame(1, 0, DATA, &[1; 60]);
        nic.kick(1);
        assert_eq!(nic.given(1), [(0, 0)]);
    }
}

#[test]
fn a_peer_that_takes_nothing_costs_frames_and_no_standstill() {
    let (mut nic, mut peer, _woken) = connected("slow");
    for _ in 0..50 {
        nic.offer_frame(1, 0, DATA, &[7; 60_000]);
        nic.kick(1);
        assert_eq!(nic.given(1).len(), 1);
    }
    // What comes out is whole frames.
    let reader = std::thread::spawn(move || {
        let mut frames = 0;
        loop {
            let mut length = [0; 4];
            peer.read_exact(&mut length).unwrap();
            let length = u32::from_be_bytes(length);
            let mut frame = vec![0; length as usize];
            peer.read_exact(&mut frame).unwrap();
            match frame[0] {
                7 => assert_eq!(length, 60_000),
                _ => return frames,
            }
            frames += 1;
        }
    });
    // The last one until it gets through.
    while !reader.is_finished() {
        nic.offer_frame(1, 0, DATA, &[9; 20]);
        nic.kick(1);
        nic.given(1);
        std::thread::sleep(Duration::from_millis(1));
    }
    let frames = reader.join().unwrap();
    assert!((1..50).contains(&frames), "{frames}");
}
