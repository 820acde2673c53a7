//! Fault queues: what devices ask for that page tables do not have, told to a
//! program by a descriptor, and its answers. Linux
//! `drivers/iommu/iommufd/eventq.c` and `drivers/iommu/io-pgfault.c`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::Context;
use super::numbers::Numbers;
use super::objects::{GroupKey, Object};
use crate::state::{File, State};
use crate::{Error, ErrorKind, FileId, FileKind, Host, Path, Retired};

/// Groups that one queue keeps: further ones are answered at once, as when the
/// kernel has no memory for them (`iopf_group_alloc`).
const LIMIT: usize = 1 << 14;

/// One page that a device asks for. `struct iommu_hwpt_pgfault`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PageFault {
    /// The process that it asks for, if it says so.
    pub pasid: Option<u32>,
    /// The device's number for the group.
    pub group: u32,
    /// What it wants to do: bits of `enum iommu_hwpt_pgfault_perm`.
    pub permissions: u32,
    /// The address.
    pub address: u64,
}

/// What a program says of a group. `enum iommufd_page_response_code`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PageAnswer {
    /// The pages are there: the device may try again.
    Success,
    /// They will not be.
    Invalid,
}

/// Pages that a device asked for together, and that are answered together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FaultGroup {
    /// By what it is answered.
    pub cookie: u32,
    /// The number of the device.
    pub device: u32,
    /// The pages, in the order in which they were asked for; the last ends the
    /// group.
    pub faults: Vec<PageFault>,
}

/// Who shows a program whether a file has something to read. Called with the
/// queue locked: must not call back.
pub trait Readiness: Send + Sync {
    /// There is something more.
    fn filled(&self);

    /// There is nothing left.
    fn drained(&self);
}

/// Who waits for the answer to a group. Called with the queue locked: must not
/// call back.
pub trait Waiting: Send + Sync {
    /// The answer.
    fn answered(&self, answer: PageAnswer);
}

/// A fault queue as an object of an iommufd.
pub(crate) struct QueueObject {
    pub(super) queue: Arc<FaultQueue>,
    /// Whether its file is open.
    pub(super) is_open: bool,
}

/// The queue itself. It has a lock of its own: whoever asks for pages holds no
/// other.
#[derive(Default)]
pub(crate) struct FaultQueue(Mutex<Queue>);

#[derive(Default)]
struct Queue {
    /// Not read yet, the oldest first.
    unread: VecDeque<Asked>,
    /// Read and not answered, by cookie.
    unanswered: BTreeMap<u32, Asked>,
    cookies: Numbers,
    readiness: Option<Arc<dyn Readiness>>,
}

struct Asked {
    /// Its own holds the queue.
    handle: Weak<Handle>,
    /// The handle's device.
    device: u32,
    faults: Vec<PageFault>,
    waiting: Option<Arc<dyn Waiting>>,
}

impl Asked {
    fn answer(&self, answer: PageAnswer) {
        if let Some(waiting) = &self.waiting {
            waiting.answered(answer);
        }
    }
}

/// By what a page table is used: a group of devices, or a PASID of one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum User {
    Group(GroupKey),
    Pasid(u32, u32),
}

/// A use of a page table that has a fault queue, from attach to detach. Linux
/// `struct iommufd_attach_handle`.
pub(crate) struct Handle {
    queue: Arc<FaultQueue>,
    /// The device that was attached first or moved last: that all requests of
    /// its group are told to come from.
    device: u32,
    is_over: AtomicBool,
}

impl Handle {
    /// Has a program asked for a group. Without room for it, and after the
    /// detach, the answer is there at once.
    pub(crate) fn ask(self: &Arc<Self>, faults: Vec<PageFault>, waiting: Option<Arc<dyn Waiting>>) {
        let asked = Asked {
            handle: Arc::downgrade(self),
            device: self.device,
            faults,
            waiting,
        };
        let mut queue = self.queue.lock();
        let kept = queue.unread.len().saturating_add(queue.unanswered.len());
        if kept >= LIMIT || self.is_over.load(Ordering::SeqCst) {
            return asked.answer(PageAnswer::Invalid);
        }
        queue.unread.push_back(asked);
        if let Some(readiness) = &queue.readiness {
            readiness.filled();
        }
    }

    /// The page table is not used so any more: nothing is asked for any more,
    /// and what was is not there. Linux `iommufd_auto_response_faults`.
    fn end(&self) {
        let mut queue = self.queue.lock();
        self.is_over.store(true, Ordering::SeqCst);
        queue.abandon(|asked| std::ptr::eq(asked.handle.as_ptr(), self));
    }
}

impl FaultQueue {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers everything: the queue is gone. Linux `iommufd_fault_destroy`.
    pub(super) fn destroy(&self) {
        self.lock().abandon(|_| true);
    }
}

impl Queue {
    /// Answers what `is_gone` by itself.
    fn abandon(&mut self, is_gone: impl Fn(&Asked) -> bool) {
        let had = !self.unread.is_empty();
        self.unread.retain(|asked| !answer_if(asked, &is_gone));
        let Self {
            unanswered,
            cookies,
            ..
        } = self;
        unanswered.retain(|cookie, asked| {
            let gone = answer_if(asked, &is_gone);
            if gone {
                cookies.give(*cookie);
            }
            !gone
        });
        if had {
            self.tell_drained();
        }
    }

    fn tell_drained(&self) {
        if self.unread.is_empty()
            && let Some(readiness) = &self.readiness
        {
            readiness.drained();
        }
    }
}

fn answer_if(asked: &Asked, is_gone: impl Fn(&Asked) -> bool) -> bool {
    let gone = is_gone(asked);
    if gone {
        asked.answer(PageAnswer::Invalid);
    }
    gone
}

impl Host {
    /// IOMMU_FAULT_QUEUE_ALLOC: its number, and the file that tells of its
    /// groups. ENOMEM. Linux `iommufd_fault_alloc`.
    pub fn fault_queue_alloc(&self, file: FileId) -> Result<(u32, FileId), Error> {
        let mut state = self.lock();
        let context = state.iommufds.get_mut(&file).ok_or(Context::NONE)?;
        let queue = Arc::new(FaultQueue::default());
        let id = context.objects.insert(Object::FaultQueue(QueueObject {
            queue: Arc::clone(&queue),
            is_open: true,
        }))?;
        let own = self.enter(File {
            kind: FileKind::FaultQueue,
            path: Path::Cdev,
            usable: true,
        });
        let opened = OpenQueue {
            iommufd: file,
            id,
            queue,
        };
        state.fault_queues.insert(own, opened);
        Ok((id, own))
    }

    /// Who is told from now on whether the file of a fault queue has something
    /// to read; is told at once if it has. EBADF for another file.
    pub fn fault_watch(&self, file: FileId, readiness: Arc<dyn Readiness>) -> Result<(), Error> {
        let queue = self.fault_queue(file)?;
        let mut queue = queue.lock();
        if !queue.unread.is_empty() {
            readiness.filled();
        }
        queue.readiness = Some(readiness);
        Ok(())
    }

    /// Takes the oldest group out that was not read yet; `None` without one.
    /// EBADF for another file, EINVAL if it has more than `most` faults. Linux
    /// `iommufd_fault_fops_read`.
    pub fn fault_take(&self, file: FileId, most: usize) -> Result<Option<FaultGroup>, Error> {
        let queue = self.fault_queue(file)?;
        let mut queue = queue.lock();
        let Some(asked) = queue.unread.front() else {
            return Ok(None);
        };
        if asked.faults.len() > most {
            return Err(Error::invalid("the group is longer than the buffer"));
        }
        let Some(asked) = queue.unread.pop_front() else {
            return Ok(None);
        };
        let group = FaultGroup {
            cookie: queue.cookies.take(),
            device: asked.device,
            faults: asked.faults.clone(),
        };
        queue.unanswered.insert(group.cookie, asked);
        queue.tell_drained();
        Ok(Some(group))
    }

    /// Puts a group back that could not be told: it is the next again. EBADF
    /// for another file.
    pub fn fault_restore(&self, file: FileId, cookie: u32) -> Result<(), Error> {
        let queue = self.fault_queue(file)?;
        let mut queue = queue.lock();
        if let Some(asked) = queue.unanswered.remove(&cookie) {
            queue.cookies.give(cookie);
            queue.unread.push_front(asked);
            if let Some(readiness) = &queue.readiness {
                readiness.filled();
            }
        }
        Ok(())
    }

    /// Answers a group. EBADF for another file, EINVAL if no group that was
    /// read has this cookie. Linux `iommufd_fault_fops_write`.
    pub fn fault_answer(&self, file: FileId, cookie: u32, answer: PageAnswer) -> Result<(), Error> {
        let queue = self.fault_queue(file)?;
        let mut queue = queue.lock();
        let asked = queue.unanswered.remove(&cookie);
        let asked = asked.ok_or(Error::invalid("no group waits for an answer to this"))?;
        queue.cookies.give(cookie);
        asked.answer(answer);
        Ok(())
    }

    /// Has device `device` of an iommufd ask for a group: by the page table of
    /// the PASID that the last page says, or by its own. Whether somebody is
    /// asked: one without a queue is not. ENOENT without the device. Linux
    /// `iommu_report_device_fault`.
    pub fn device_asks(
        &self,
        file: FileId,
        device: u32,
        faults: Vec<PageFault>,
    ) -> Result<bool, Error> {
        let state = self.lock();
        let context = state.iommufds.get(&file).ok_or(Context::NONE)?;
        let group = context.objects.device(device)?.group;
        let pasid = faults.last().and_then(|fault| fault.pasid);
        let user = pasid.map_or(User::Group(group), |pasid| User::Pasid(device, pasid));
        let handle = context.handles.get(&user).cloned();
        drop(state);
        if let Some(handle) = &handle {
            handle.ask(faults, None);
        }
        Ok(handle.is_some())
    }

    fn fault_queue(&self, file: FileId) -> Result<Arc<FaultQueue>, Error> {
        let state = self.lock();
        let opened = state.fault_queues.get(&file).ok_or(Error::new(
            ErrorKind::BadDescriptor,
            "the file is no fault queue",
        ))?;
        Ok(Arc::clone(&opened.queue))
    }

    /// The last descriptor of a fault queue went. Its groups stay: they are
    /// answered when their devices are detached. Linux
    /// `iommufd_eventq_fops_release`.
    pub(crate) fn close_fault_queue(&self, state: &mut State, file: FileId, retired: &mut Retired) {
        let Some(opened) = state.fault_queues.remove(&file) else {
            return;
        };
        opened.queue.lock().readiness = None;
        if let Some(context) = state.iommufds.get_mut(&opened.iommufd)
            && let Some(object) = context.objects.fault_queue_mut(opened.id)
        {
            object.is_open = false;
        }
        self.forget_iommufd(state, opened.iommufd, retired);
    }
}

/// An open file of a fault queue.
pub(crate) struct OpenQueue {
    iommufd: FileId,
    id: u32,
    queue: Arc<FaultQueue>,
}

impl Context {
    /// Whether a file or a page table uses the fault queue.
    pub(super) fn uses_fault_queue(&self, id: u32) -> bool {
        let queue = self.objects.fault_queue(id);
        let mut hwpts = self.objects.hwpts();
        queue.is_ok_and(|queue| queue.is_open) || hwpts.any(|hwpt| hwpt.fault_queue == Some(id))
    }

    /// `user` uses `hwpt` from now on, by way of `device`, or none. What it
    /// asked for by another is answered.
    pub(super) fn hand_over(&mut self, user: User, device: u32, hwpt: Option<u32>) {
        if let Some(handle) = self.handles.remove(&user) {
            handle.end();
        }
        let table = hwpt.and_then(|hwpt| self.objects.hwpt(hwpt).ok());
        let queue = table.and_then(|table| self.objects.fault_queue(table.fault_queue?).ok());
        if let Some(queue) = queue {
            let handle = Handle {
                queue: Arc::clone(&queue.queue),
                device,
                is_over: AtomicBool::new(false),
            };
            self.handles.insert(user, Arc::new(handle));
        }
    }
}
