//! Where virtual functions are: on the bus of their physical function, by
//! function numbers that ARI adds. PCI Express Base 6.0 sections 6.13 and 9.
use super::{BridgeKind, FunctionKind, Misplaced, Placed, Planned, TopologyError};
use iogate_dma::{RequesterId, Source};

/// Requester ids from a physical function to its first virtual one.
pub const FIRST_VF_OFFSET: u16 = 0x80;
/// Requester ids from a virtual function to the next: room for every physical
/// function that a device may have.
pub const VF_STRIDE: u16 = 8;
/// Virtual functions of one physical function at most: what is left of the
/// bus.
pub const MAX_VFS: u16 = 16;

/// Whose virtual function a function is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct VirtualOf {
    /// Index of the physical function.
    pub physical: usize,
    /// The number among its virtual functions, from 0.
    pub number: u16,
}

/// Adds the virtual functions that are asked for.
pub(super) fn add(planned: &[Planned], functions: &mut Vec<Placed>) -> Result<(), TopologyError> {
    for (index, plan) in planned.iter().enumerate() {
        let Some(physical) = functions.get(index).copied().filter(|_| plan.vfs > 0) else {
            continue;
        };
        if plan.vfs > MAX_VFS {
            let reason = Misplaced::TooManyVirtual(plan.vfs);
            return Err(TopologyError::one(index, reason));
        }
        let has_link = physical.kind == FunctionKind::Endpoint
            && physical.parent.is_some_and(|parent| {
                use BridgeKind::{DownstreamPort, RootPort};
                let kind = functions.get(parent).map(|bridge| bridge.kind);
                matches!(kind, Some(FunctionKind::Bridge(RootPort | DownstreamPort)))
            });
        if !has_link {
            return Err(TopologyError::one(index, Misplaced::NoAri));
        }
        for (at, function) in functions.iter_mut().enumerate() {
            function.ari |= Some(at) == physical.parent || function.parent == physical.parent;
        }
        for number in 0..plan.vfs {
            let address = physical.address;
            let distance = FIRST_VF_OFFSET.saturating_add(number.saturating_mul(VF_STRIDE));
            let requester = RequesterId(address.requester.0.saturating_add(distance));
            functions.push(Placed {
                address: Source::new(address.segment, requester),
                multifunction: false,
                ari: true,
                virtual_of: Some(VirtualOf {
                    physical: index,
                    number,
                }),
                ..physical
            });
        }
    }
    Ok(())
}
