//! A client and a server of this crate, against each other.

mod common;

use common::{Told, serve};
use iogate_vfio_user::{Client, ClientOptions};

#[test]
fn a_client_reads_what_it_wrote() {
    let served = serve();
    let client = Client::from_socket(served.stream.into(), ClientOptions::default()).unwrap();
    assert_eq!(client.info().unwrap().regions, 3);
    assert_eq!(client.region(0).unwrap().size, 64 << 10);
    assert_eq!(client.irq(0).unwrap().count, 4);
    client.region_write(0, 16, &[1, 2, 3, 4]).unwrap();
    client.region_post(0, 20, &[5]).unwrap();
    let mut read = [0; 5];
    client.region_read(0, 16, &mut read).unwrap();
    assert_eq!(read, [1, 2, 3, 4, 5]);
    drop(client);
    served.thread.join().unwrap();
    let told = served.device.told();
    assert_eq!(told.len(), 4);
    assert_eq!(told[2], Told::Write(0, 20, vec![5]));
}
