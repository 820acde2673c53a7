//! IOMMU_IOAS_CHANGE_PROCESS: who pays for pinned pages. Linux
//! `drivers/iommu/iommufd/ioas.c`, `iommufd_ioas_change_process`.

use std::sync::{Arc, Weak};

use super::Context;
use super::ioas::pin_error;
use super::shared::{Account, Change, SharedPages};
use crate::{Caller, Error, FileId, Host, Pages};

impl Host {
    /// Has the caller pay for all pinned memory of the iommufd, in the way that
    /// it was paid for. EINVAL if a mapping is of a process's addresses: they
    /// would mean other memory in the caller; ENOMEM if it exceeds his limit.
    /// Then nothing has changed.
    pub fn ioas_change_process(&self, file: FileId, caller: &dyn Caller) -> Result<(), Error> {
        let mut state = self.lock();
        let context = state.iommufds.get_mut(&file).ok_or(Context::NONE)?;
        let pages: Vec<_> = context.pages.iter().filter_map(Weak::upgrade).collect();
        if pages.iter().any(|pages| !pages.is_file()) {
            return Err(Error::invalid("a mapping is not of a file"));
        }
        let account = Account::of(&self.config, caller, context.rlimit_mode);
        let changes: Result<Vec<Change>, _> = pages
            .into_iter()
            .map(|pages| Change::prepare(pages, account))
            .collect();
        let changes = changes.map_err(|error| pin_error(error, false))?;
        changes.into_iter().for_each(Change::make);
        Ok(())
    }
}

impl Context {
    /// Keeps what a mapping names in mind, and forgets what none does any more.
    pub(super) fn remember(&mut self, pages: &Arc<SharedPages>) {
        if self.pages.len() == self.pages.capacity() {
            self.pages.retain(|pages| pages.strong_count() > 0);
            // Room for as many again, so that this is seldom done.
            self.pages.reserve(self.pages.len().max(16));
        }
        self.pages.push(Arc::downgrade(pages));
    }
}
