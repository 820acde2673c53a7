//! Who makes a call, and what the kernel would ask about him.

/// The thread that made a call.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Actor {
    /// Process (thread group) id, as the machine numbers it.
    pub process: u32,
    /// Thread id.
    pub thread: u32,
}

/// What a process may keep in memory. setrlimit(2), RLIMIT_MEMLOCK.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Memlock {
    /// CAP_IPC_LOCK: no limit.
    Exempt,
    /// Bytes.
    Limit(u64),
}

/// The process on whose behalf a call is made.
pub trait Caller {
    /// The thread, for reports.
    fn actor(&self) -> Actor;

    /// A number for the address space (mm) of the process: differs after exec.
    fn address_space(&self) -> u64;

    /// The real user id, for per-user accounting.
    fn user(&self) -> u32;

    /// The limit of locked memory; asked only when it is enforced.
    fn memlock(&self) -> Memlock;

    /// Whether the process has CAP_SYS_RAWIO.
    fn has_raw_io(&self) -> bool;

    /// Whether the process has CAP_SYS_RESOURCE.
    fn has_sys_resource(&self) -> bool {
        false
    }
}
