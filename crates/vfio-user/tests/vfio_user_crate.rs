//! Each side against the `vfio_user` crate 0.1.7, as far as that goes.

mod common;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::mpsc::{Sender, channel};

use common::{Noting, Told};
use iogate_dma::{Iova, Rights, Span};
use iogate_vfio_user::{Client, ClientOptions, Errno, IrqAction, IrqTarget, Server, ServerOptions};
use vfio_bindings::bindings::vfio::vfio_region_info;

fn path(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("iogate-wire-{}-{name}", std::process::id()))
}

#[test]
fn its_client_uses_our_server() {
    let path = path("their-client");
    let server = Server::bind(&path, ServerOptions::default()).unwrap();
    let device = Noting::new();
    let stop = server.stop();
    std::thread::scope(|scope| {
        scope.spawn(|| server.run(&*device, |_| {}));
        let mut client = vfio_user::Client::new(&path).unwrap();
        assert_eq!(client.region(0).unwrap().size, 64 << 10);
        client.region_write(0, 4, &[1, 2, 3]).unwrap();
        let mut read = [0; 4];
        client.region_read(0, 4, &mut read).unwrap();
        assert_eq!(read, [1, 2, 3, 0]);
        let file = File::open("/dev/null").unwrap();
        client
            .dma_map(0x4000, 0x1000, 0x2000, file.as_raw_fd())
            .unwrap();
        client.dma_unmap(0x1000, 0x2000).unwrap();
        assert_eq!(client.get_irq_info(0).unwrap().count, 4);
        let flags = 1 << 2 | 1 << 5;
        client
            .set_irqs(0, flags, 1, 1, &[file.as_raw_fd()])
            .unwrap();
        client.reset().unwrap();
        client.shutdown().unwrap();
        stop.stop();
    });
    let told = device.told();
    let expected = [
        Told::Connected,
        Told::Write(0, 4, vec![1, 2, 3]),
        Told::Map(0x1000, 0x2000, Rights::READ_WRITE, Some(0x4000)),
        Told::Unmap(0x1000, 0x2000),
        Told::Irqs(0, 1, 1, IrqAction::Trigger, "eventfd", 1),
        Told::Reset,
        Told::Disconnected,
    ];
    assert_eq!(told, expected);
}

struct Backend(Sender<(u64, u64, u64, bool)>);

impl vfio_user::ServerBackend for Backend {
    fn region_read(&mut self, _: u32, offset: u64, into: &mut [u8]) -> std::io::Result<()> {
        into.fill(offset as u8);
        Ok(())
    }
    fn region_write(&mut self, _: u32, _: u64, _: &[u8]) -> std::io::Result<()> {
        Err(std::io::Error::from_raw_os_error(1))
    }
    fn dma_map(
        &mut self,
        _: vfio_user::DmaMapFlags,
        offset: u64,
        address: u64,
        size: u64,
        file: Option<File>,
    ) -> std::io::Result<()> {
        self.0
            .send((offset, address, size, file.is_some()))
            .unwrap();
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

#[test]
fn our_client_uses_its_server() {
    let path = path("their-server");
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
    let irq = vfio_user::IrqInfo {
        index: 0,
        flags: 1,
        count: 2,
    };
    let server = vfio_user::Server::from_owned_fd(listener.into(), true, vec![irq], vec![region]);
    let (sender, maps) = channel();
    std::thread::spawn(move || server.run(&mut Backend(sender)));
    let client = Client::connect(&path, ClientOptions::default()).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(client.info().unwrap().regions, 1);
    assert_eq!(client.region(0).unwrap().size, 4096);
    let mut read = [0; 4];
    client.region_read(0, 9, &mut read).unwrap();
    assert_eq!(read, [9; 4]);
    let refused = client.region_write(0, 0, &[1]).unwrap_err();
    assert!(refused.errno() != Errno::NOTCONN, "{refused}");
    let file = File::open("/dev/null").unwrap();
    let span = Span::with_length(Iova(0x1000), 0x2000).unwrap();
    let held = std::os::fd::AsFd::as_fd(&file);
    client
        .dma_map(span, Rights::READ_WRITE, Some((held, 0x4000)))
        .unwrap();
    assert_eq!(maps.recv().unwrap(), (0x4000, 0x1000, 0x2000, true));
    client.dma_unmap(span).unwrap();
    client
        .set_irqs(0, 0, 1, IrqAction::Trigger, IrqTarget::Eventfds(&[held]))
        .unwrap();
    client.reset().unwrap();
}
