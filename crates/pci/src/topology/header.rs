//! What a bridge's configuration space shows: a type 1 header, the PCI Express
//! capability, ACS. PCI-to-PCI Bridge Architecture 1.2 section 3.2; PCI
//! Express Base 6.0 sections 7.5.3 and 7.7.11.
use super::{BridgeKind, FunctionKind, Placed};

/// Vendor and device id by kind: those of QEMU's generic bridges and of the
/// Texas Instruments XIO3130 switch, which every system's port driver binds.
fn ids(kind: BridgeKind) -> (u16, u16) {
    match kind {
        BridgeKind::RootPort => (0x1b36, 0x000c),
        BridgeKind::UpstreamPort => (0x104c, 0x8232),
        BridgeKind::DownstreamPort => (0x104c, 0x8233),
        BridgeKind::PcieToPci => (0x1b36, 0x000e),
        BridgeKind::PciToPci => (0x1b36, 0x0001),
    }
}

/// The PCI Express capability's device/port type and slot bit (register at
/// offset 2); `None` for conventional bridges.
fn express_flags(kind: BridgeKind) -> Option<u16> {
    const VERSION: u16 = 2;
    const SLOT: u16 = 1 << 8;
    match kind {
        BridgeKind::RootPort => Some(VERSION | 4 << 4 | SLOT),
        BridgeKind::UpstreamPort => Some(VERSION | 5 << 4),
        BridgeKind::DownstreamPort => Some(VERSION | 6 << 4 | SLOT),
        BridgeKind::PcieToPci => Some(VERSION | 7 << 4),
        BridgeKind::PciToPci => None,
    }
}

/// The configuration space of a bridge at rest: 4096 bytes, 256 for a
/// conventional bridge; empty for an endpoint. Its windows are closed.
pub fn bridge_config(function: &Placed) -> Vec<u8> {
    let FunctionKind::Bridge(kind) = function.kind else {
        return Vec::new();
    };
    let mut config = vec![0u8; if function.express { 4096 } else { 256 }];
    let mut put = |offset: usize, bytes: &[u8]| {
        let end = offset.saturating_add(bytes.len());
        if let Some(target) = config.get_mut(offset..end) {
            target.copy_from_slice(bytes);
        }
    };
    let (vendor, device) = ids(kind);
    put(0x00, &vendor.to_le_bytes());
    put(0x02, &device.to_le_bytes());
    put(0x04, &0x0107u16.to_le_bytes()); // I/O, memory, bus master, SERR#
    put(0x09, &[0x00, 0x04, 0x06]);
    put(0x0e, &[0x01 | u8::from(function.multifunction) << 7]);
    if let Some(buses) = function.buses {
        put(0x18, &[buses.primary, buses.secondary, buses.subordinate]);
    }
    put(0x1c, &[0xf0, 0x00]); // I/O base above limit
    put(0x20, &[0xf0, 0xff, 0x00, 0x00]); // memory base above limit
    put(0x24, &[0xf1, 0xff, 0x01, 0x00]); // prefetchable, 64-bit, base above limit
    if let Some(flags) = express_flags(kind) {
        const LINK: u16 = 4 << 4 | 3; // x4 at 8 GT/s
        put(0x06, &0x0010u16.to_le_bytes()); // capabilities list
        put(0x34, &[0x40]);
        put(0x40, &[0x10, 0x00]);
        put(0x42, &flags.to_le_bytes());
        put(0x44, &0x8000u32.to_le_bytes()); // role-based error reporting
        put(0x4c, &u32::from(LINK).to_le_bytes());
        put(0x52, &LINK.to_le_bytes());
        if matches!(kind, BridgeKind::RootPort | BridgeKind::DownstreamPort) {
            const ARI_FORWARDING: u16 = 1 << 5;
            put(0x64, &ARI_FORWARDING.to_le_bytes()); // supported
            if function.ari {
                put(0x68, &ARI_FORWARDING.to_le_bytes()); // enabled
            }
        }
        let has_acs = !matches!(kind, BridgeKind::PcieToPci) && function.acs;
        if has_acs {
            const SOURCE_VALIDATION_TO_UPSTREAM_FORWARDING: u16 = 1 | 1 << 2 | 1 << 3 | 1 << 4;
            put(0x100, &0x0001_000du32.to_le_bytes());
            put(
                0x104,
                &SOURCE_VALIDATION_TO_UPSTREAM_FORWARDING.to_le_bytes(),
            );
            put(
                0x106,
                &SOURCE_VALIDATION_TO_UPSTREAM_FORWARDING.to_le_bytes(),
            );
        }
    }
    config
}
