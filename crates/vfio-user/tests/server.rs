//! A server, as a client that writes raw messages sees it.

mod common;

use common::{Told, serve};
use iogate_vfio_user::Ended;
use iogate_vfio_user::wire::{Command, RegionAccess};
use zerocopy::IntoBytes;

#[test]
fn a_region_is_written_and_read_back() {
    let mut served = serve();
    served.version();
    let access = RegionAccess {
        offset: 8,
        region: 0,
        count: 4,
    };
    let mut write = access.as_bytes().to_vec();
    write.extend_from_slice(&[1, 2, 3, 4]);
    let replied = served.call(Command::RegionWrite, &write).unwrap();
    assert_eq!(replied, access.as_bytes());
    let read = served.call(Command::RegionRead, access.as_bytes()).unwrap();
    assert_eq!(read, write);
    let (ended, told) = served.close();
    assert_eq!(ended, Ended::Disconnected);
    let write = Told::Write(0, 8, vec![1, 2, 3, 4]);
    assert_eq!(told, [Told::Connected, write, Told::Disconnected]);
}
