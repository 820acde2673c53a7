//! Messages of the unit itself (fault, invalidation, page-request events) on
//! their way to the guest.

use iogate_dma::Message;

/// Takes a message to the guest's interrupt controller. It must not block and
/// must not call the unit.
pub(crate) type Deliver = Box<dyn Fn(Message) + Send + Sync>;
