//! Files in `/sys` whose writes do something: the write takes effect, the tree
//! follows, and only then the program hears of it.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use iogate_host::Host;
use iogate_sysfs::Tree;
use iogate_uapi::{self as uapi, Attribute};

use crate::client::Calling;
use crate::core::{Core, Rest};
use crate::listener::{Listener, Reply};
use crate::presented::Presented;
use crate::say::say;
use crate::session::Attributes;
use crate::thread::Inode;

/// How often the user of a device is asked to let go of it.
/// `vfio_unregister_group_dev`.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// All such files.
pub(crate) struct Writable {
    by_inode: HashMap<Inode, File>,
    tree: Box<dyn Fn() -> Tree + Send + Sync>,
    state: Mutex<State>,
}

/// One such file.
#[derive(Clone, Debug)]
pub(crate) struct File {
    path: String,
    attribute: Attribute,
}

struct State {
    presented: Presented,
    /// Writes in their order: the first may wait for a device to be closed,
    /// the others wait for it, as the kernel's do for its lock
    /// (`pci_lock_rescan_remove`).
    writes: VecDeque<Write>,
}

struct Write {
    file: File,
    text: Vec<u8>,
    caller: (Arc<Listener>, u64),
    waits: Option<Wait>,
}

/// What the first write waits for.
struct Wait {
    device: usize,
    asked: Instant,
}

impl Writable {
    pub(crate) fn new(attributes: Attributes, presented: Presented) -> io::Result<Self> {
        let by_inode = attributes.files.into_iter().map(|(path, attribute)| {
            let inode = presented.inode(&path)?;
            Ok((inode, File { path, attribute }))
        });
        Ok(Self {
            by_inode: by_inode.collect::<io::Result<_>>()?,
            tree: attributes.tree,
            state: Mutex::new(State {
                presented,
                writes: VecDeque::new(),
            }),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file of this kind that a descriptor of the client names.
    pub(crate) fn find(&self, client: &Calling<'_>, fd: i32) -> Option<File> {
        self.by_inode.get(&client.inode(fd)?).cloned()
    }

    /// Does a write, as soon as those before it are done, and answers it.
    pub(crate) fn write(
        &self,
        core: &Arc<Core>,
        file: File,
        text: Vec<u8>,
        caller: (Arc<Listener>, u64),
    ) {
        self.lock().writes.push_back(Write {
            file,
            text,
            caller,
            waits: None,
        });
        self.go_on(core);
    }

    /// Does the writes that wait, as far as they need not wait longer.
    pub(crate) fn go_on(&self, core: &Arc<Core>) {
        let mut state = self.lock();
        while let Some(mut write) = state.writes.pop_front() {
            let stored = uapi::store_attribute(&core.host, write.file.attribute, &write.text);
            let tree = (self.tree)();
            if let Some(paths) = &core.paths {
                paths.show(&tree);
            }
            let shown = state.presented.show(tree);
            let restored = state.presented.restore(&write.file.path);
            if let Err(error) = shown.and(restored) {
                say(&format!("cannot show in /sys what has changed: {error}"));
            }
            let (rest, reply) = match stored {
                Ok(stored) => {
                    let rest = Rest::from(stored.after);
                    if let Some(device) = stored.waits_for {
                        write.wait_for(&core.host, device);
                        state.writes.push_front(write);
                        return core.settle(rest, || {});
                    }
                    let written = i64::try_from(write.text.len()).unwrap_or(i64::MAX);
                    (rest, Reply::Value(written))
                }
                Err(errno) => (Rest::default(), Reply::Error(errno.0)),
            };
            let (listener, id) = write.caller;
            core.settle(rest, move || listener.answer(id, reply));
        }
    }

    /// Asks the user of the device that is waited for once more, from time to
    /// time.
    pub(crate) fn ask_again(&self, host: &Host) {
        let mut state = self.lock();
        let first = state.writes.front_mut();
        if let Some(wait) = first.and_then(|write| write.waits.as_mut())
            && wait.asked.elapsed() >= ASK_AGAIN
        {
            wait.asked = Instant::now();
            host.request(wait.device);
        }
    }
}

impl Write {
    /// Takes note of what it waits for, and tells the user of it.
    fn wait_for(&mut self, host: &Host, device: usize) {
        if self
            .waits
            .as_ref()
            .is_some_and(|wait| wait.device == device)
        {
            return;
        }
        self.waits = Some(Wait {
            device,
            asked: Instant::now(),
        });
        if let Ok(device) = host.device(device) {
            say(&format!(
                "the write of {} waits until {} is closed",
                self.file.path, device.name
            ));
        }
    }
}
