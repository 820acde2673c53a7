//! A client's memory behind requests, as a served device uses it.

mod common;

use std::io::Write;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use common::{Served, Told, message, receive, serve, serve_with};
use iogate_dma::{Iova, Rights};
use iogate_vfio_user::wire::{self, Command, DmaAccess, DmaMap, DmaUnmap, RegionAccess};
use iogate_vfio_user::{Errno, Error, ServerOptions};
use zerocopy::{FromBytes, IntoBytes};

fn ready() -> Served {
    let mut served = serve();
    served.version();
    served
}

fn read_request() -> Vec<u8> {
    let access = RegionAccess {
        offset: 0,
        region: 1,
        count: 4,
    };
    message(500, Command::RegionRead.number(), 0, access.as_bytes())
}

/// A request of the server: its id, its command, what it accesses, its data.
fn request(served: &mut Served) -> (u16, u16, DmaAccess, Vec<u8>) {
    let (header, body) = receive(&mut served.stream);
    assert_eq!(header.flags & wire::flags::TYPE, wire::flags::COMMAND);
    let (access, data) = DmaAccess::read_from_prefix(&body).unwrap();
    (header.id, header.command, access, data.to_vec())
}

fn reply(served: &mut Served, id: u16, command: Command, access: DmaAccess, data: &[u8]) {
    let body = [access.as_bytes(), data].concat();
    let bytes = message(id, command.number(), wire::flags::REPLY, &body);
    served.stream.write_all(&bytes).unwrap();
}

#[test]
fn transfers_are_split_as_the_client_wants_them() {
    let mut served = serve();
    let mut version = vec![0; 4];
    version.extend_from_slice(b"{\"capabilities\":{\"max_data_xfer_size\":8}}\0");
    served.call(Command::Version, &version).unwrap();
    let peer = served.peer();
    let worker = std::thread::spawn(move || {
        let mut into = [0; 12];
        peer.dma_read(Iova(0x1000), &mut into).unwrap();
        peer.dma_write(Iova(0x2000), &into).unwrap();
        into
    });
    for (address, count) in [(0x1000, 8), (0x1008, 4)] {
        let (id, command, access, data) = request(&mut served);
        assert_eq!((command, data.len()), (Command::DmaRead.number(), 0));
        assert_eq!(access, DmaAccess { address, count });
        reply(
            &mut served,
            id,
            Command::DmaRead,
            access,
            &vec![count as u8; count as usize],
        );
    }
    for (address, count) in [(0x2000, 8), (0x2008, 4)] {
        let (id, command, access, data) = request(&mut served);
        assert_eq!(command, Command::DmaWrite.number());
        assert_eq!(access, DmaAccess { address, count });
        assert_eq!(data, vec![count as u8; count as usize]);
        // As QEMU does it: no payload at all.
        let bytes = message(id, command, wire::flags::REPLY, &[]);
        served.stream.write_all(&bytes).unwrap();
    }
    assert_eq!(worker.join().unwrap(), [8, 8, 8, 8, 8, 8, 8, 8, 4, 4, 4, 4]);
}

#[test]
fn replies_may_come_in_any_order() {
    let mut served = ready();
    let peer = served.peer();
    let workers: Vec<_> = (0..8_u64)
        .map(|index| {
            let peer = Arc::clone(&peer);
            std::thread::spawn(move || {
                let mut into = [0; 4];
                peer.dma_read(Iova(index), &mut into).unwrap();
                assert_eq!(into, [index as u8; 4]);
            })
        })
        .collect();
    let mut requests: Vec<_> = workers.iter().map(|_| request(&mut served)).collect();
    requests.reverse();
    for (id, _, access, _) in requests {
        let data = [access.address as u8; 4];
        reply(&mut served, id, Command::DmaRead, access, &data);
    }
    for worker in workers {
        worker.join().unwrap();
    }
}

#[test]
fn an_answer_that_does_not_fit_is_an_error() {
    let mut served = ready();
    let peer = served.peer();
    let (results, ended) = channel();
    std::thread::spawn(move || {
        for _ in 0..5 {
            let result = peer.dma_read(Iova(0), &mut [0; 4]);
            results.send(result).unwrap();
        }
    });
    let command = Command::DmaRead;
    let flags = wire::flags::REPLY;
    let whole =
        |count: u64, data: &[u8]| [DmaAccess { address: 0, count }.as_bytes(), data].concat();
    let answers = [
        message(0, command.number(), flags, &whole(4, &[1; 3])),
        message(0, command.number(), flags, &whole(8, &[1; 8])),
        message(0, command.number(), flags, &[1; 3]),
        message(0, Command::DmaWrite.number(), flags, &whole(4, &[1; 4])),
    ];
    for mut answer in answers {
        let (id, ..) = request(&mut served);
        answer[..2].copy_from_slice(&id.to_ne_bytes());
        served.stream.write_all(&answer).unwrap();
        assert!(matches!(ended.recv().unwrap(), Err(Error::Answer { .. })));
    }
    let (id, ..) = request(&mut served);
    let mut refused = message(id, command.number(), flags | wire::flags::ERROR, &[]);
    refused[12] = 1;
    served.stream.write_all(&refused).unwrap();
    let errno = Errno::PERM;
    assert_eq!(
        ended.recv().unwrap(),
        Err(Error::Refused { command, errno })
    );
}

#[test]
fn a_reply_that_comes_too_late_or_twice_answers_nothing_else() {
    let options = ServerOptions {
        timeout: Duration::from_millis(300),
        ..ServerOptions::default()
    };
    let mut served = serve_with(options);
    served.version();
    let peer = served.peer();
    let command = Command::DmaRead;
    let asking = Arc::clone(&peer);
    let worker = std::thread::spawn(move || asking.dma_read(Iova(0), &mut [0; 4]));
    let (late, _, access, _) = request(&mut served);
    assert_eq!(worker.join().unwrap(), Err(Error::Timeout { command }));
    let mut used = Vec::new();
    for round in 0..200 {
        let asking = Arc::clone(&peer);
        let worker = std::thread::spawn(move || {
            let mut into = [0; 4];
            asking.dma_read(Iova(0), &mut into).map(|()| into)
        });
        let (id, ..) = request(&mut served);
        assert_ne!(
            id, late,
            "an id whose reply may still come is not used again"
        );
        if let Some(before) = used.last().copied().filter(|before| *before != id) {
            reply(&mut served, before, command, access, &[0xee; 4]);
        }
        reply(&mut served, id, command, access, &[round as u8; 4]);
        match worker.join().unwrap() {
            Ok(into) => assert_eq!(into, [round as u8; 4]),
            // A machine under load: nothing is proved by this round.
            Err(error) => {
                assert_eq!(error, Error::Timeout { command });
                return;
            }
        }
        used.push(id);
    }
    reply(&mut served, late, command, access, &[0; 4]);
    assert!(peer.is_connected());
}

#[test]
fn a_request_that_waits_is_refused_within_an_answer_and_one_that_does_not_is_sent() {
    let mut served = ready();
    let (results, seen) = channel();
    *served.device.on_write.lock().unwrap() = Some(Box::new(move |peer| {
        results.send(peer.dma_read(Iova(0), &mut [0; 4])).unwrap();
        results.send(peer.dma_write(Iova(0), &[0; 4])).unwrap();
        results
            .send(peer.dma_post(Iova(0xfee0_0000), &[1, 2, 3, 4]))
            .unwrap();
    }));
    let access = RegionAccess {
        offset: 0,
        region: 0,
        count: 1,
    };
    let body = [access.as_bytes(), &[1]].concat();
    let bytes = message(500, Command::RegionWrite.number(), 0, &body);
    served.stream.write_all(&bytes).unwrap();
    let (header, body) = receive(&mut served.stream);
    assert_eq!(header.command, Command::DmaWrite.number());
    assert_eq!(header.flags, wire::flags::NO_REPLY);
    assert_eq!(body[16..], [1, 2, 3, 4]);
    assert_eq!(receive(&mut served.stream).0.id, 500);
    let within = |command| Err(Error::WithinAnswer { command });
    assert_eq!(seen.recv().unwrap(), within(Command::DmaRead));
    assert_eq!(seen.recv().unwrap(), within(Command::DmaWrite));
    assert_eq!(seen.recv().unwrap(), Ok(()));
}

#[test]
fn a_register_is_answered_while_a_device_waits_for_memory() {
    let mut served = ready();
    let peer = served.peer();
    let worker = std::thread::spawn(move || peer.dma_read(Iova(0x40), &mut [0; 4]));
    let (id, _, access, _) = request(&mut served);
    for _ in 0..3 {
        served.stream.write_all(&read_request()).unwrap();
        let (header, body) = receive(&mut served.stream);
        assert_eq!((header.id, body.len()), (500, 20));
    }
    reply(&mut served, id, Command::DmaRead, access, &[1; 4]);
    assert_eq!(worker.join().unwrap(), Ok(()));
}

#[test]
fn an_unmap_waits_for_a_transfer_whose_reply_comes_behind_it() {
    let mut served = ready();
    let map = DmaMap {
        argsz: 32,
        flags: 3,
        offset: 0,
        address: 0x1000,
        size: 0x1000,
    };
    served.call(Command::DmaMap, map.as_bytes()).unwrap();
    let peer = served.peer();
    let (results, read) = channel();
    let worker = std::thread::spawn(move || {
        results
            .send(peer.dma_read(Iova(0x1000), &mut [0; 4]))
            .unwrap();
    });
    *served.device.before_unmap.lock().unwrap() = Some(worker);
    let (id, _, access, _) = request(&mut served);
    let unmap = DmaUnmap {
        argsz: 24,
        flags: 0,
        address: 0x1000,
        size: 0x1000,
    };
    // Another command behind it has to wait for it.
    let bytes = message(600, Command::DmaUnmap.number(), 0, unmap.as_bytes());
    served.stream.write_all(&bytes).unwrap();
    served.stream.write_all(&read_request()).unwrap();
    reply(&mut served, id, Command::DmaRead, access, &[1; 4]);
    assert_eq!(receive(&mut served.stream).0.id, 600);
    assert_eq!(receive(&mut served.stream).0.id, 500);
    assert_eq!(read.recv().unwrap(), Ok(()));
    let told = [
        Told::Connected,
        Told::Map(0x1000, 0x1000, Rights::READ_WRITE, None),
        Told::Unmap(0x1000, 0x1000),
    ];
    assert_eq!(served.device.told(), told);
}

#[test]
fn commands_that_come_while_an_unmap_waits_are_answered_in_their_order() {
    let mut served = ready();
    let map = DmaMap {
        argsz: 32,
        flags: 3,
        offset: 0,
        address: 0x1000,
        size: 0x1000,
    };
    served.call(Command::DmaMap, map.as_bytes()).unwrap();
    let peer = served.peer();
    let worker = std::thread::spawn(move || {
        for _ in 0..2 {
            peer.dma_read(Iova(0x1000), &mut [0; 4]).unwrap();
        }
    });
    *served.device.before_unmap.lock().unwrap() = Some(worker);
    let (first, _, access, _) = request(&mut served);
    let unmap = DmaUnmap {
        argsz: 24,
        flags: 0,
        address: 0,
        size: 0x10000,
    };
    let bytes = message(600, Command::DmaUnmap.number(), 0, unmap.as_bytes());
    served.stream.write_all(&bytes).unwrap();
    for offset in 0..40 {
        let access = RegionAccess {
            offset: 0,
            region: 1,
            count: offset + 1,
        };
        let bytes = message(700, Command::RegionRead.number(), 0, access.as_bytes());
        served.stream.write_all(&bytes).unwrap();
    }
    reply(&mut served, first, Command::DmaRead, access, &[1; 4]);
    let (second, ..) = request(&mut served);
    reply(&mut served, second, Command::DmaRead, access, &[1; 4]);
    assert_eq!(receive(&mut served.stream).0.id, 600);
    for offset in 0..40 {
        assert_eq!(receive(&mut served.stream).1.len(), 17 + offset);
    }
}

#[test]
fn whoever_waits_for_a_client_that_goes_is_told() {
    let mut served = ready();
    let peer = served.peer();
    let workers: Vec<_> = (0..4)
        .map(|_| {
            let peer = Arc::clone(&peer);
            std::thread::spawn(move || peer.dma_read(Iova(0), &mut [0; 4]))
        })
        .collect();
    for _ in &workers {
        request(&mut served);
    }
    served.close();
    for worker in workers {
        assert_eq!(worker.join().unwrap(), Err(Error::Disconnected));
    }
    assert_eq!(
        peer.dma_read(Iova(0), &mut [0; 4]),
        Err(Error::Disconnected)
    );
    assert_eq!(peer.dma_post(Iova(0), &[0; 4]), Err(Error::Disconnected));
    assert!(!peer.is_connected());
}
