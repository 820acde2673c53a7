//! Requester-id aliases: what bridges to conventional buses put in place of
//! the id of a function behind them. Linux drivers/pci/search.c
//! `pci_for_each_dma_alias`; PCI Express to PCI/PCI-X Bridge 1.0 section 2.3.
use super::{BridgeKind, FunctionKind, Topology};
use iogate_dma::RequesterId;

impl Topology {
    /// The aliases of a function, each with the function that presents it.
    pub(super) fn alias_owners(&self, index: usize) -> Vec<(usize, RequesterId)> {
        let Some(function) = self.functions.get(index) else {
            return Vec::new();
        };
        let own = (index, function.address.requester);
        let bridges = self.upstream(index).filter_map(|(above, bridge)| {
            let id = match bridge.kind {
                FunctionKind::Bridge(BridgeKind::PcieToPci) => {
                    RequesterId::new(bridge.buses?.secondary, 0, 0)?
                }
                FunctionKind::Bridge(BridgeKind::PciToPci) => bridge.address.requester,
                _ => return None,
            };
            Some((above, id))
        });
        std::iter::once(own).chain(bridges).collect()
    }
}
