//! One address through a domain's tables. VT-d 4.1 sections 3.6 to 3.8.

use iogate_dma::{Access, FaultReason, Gpa, Memory, MemoryError, Privilege, Stage, Walk};
use iogate_paging::vtd::{FirstStage, SecondStage};
use iogate_paging::{
    Behind, BehindError, Format, Permissions, Reason as Why, Stop, Translation, walk,
};

use super::domain::{Domain, Kind, Space};
use super::limits::Limits;
use crate::spec::fault::Reason;

/// The page that an address lies in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Page {
    /// Where the address leads.
    pub(crate) output: u64,
    /// The page's size less one byte.
    pub(crate) mask: u64,
    /// What the tables allow.
    pub(crate) permissions: Permissions,
    /// Whether a write would leave every flag as it is.
    pub(crate) settled: bool,
    /// Whether a stage mapped it by a larger page than this one.
    pub(crate) cut: bool,
}

/// Why page tables refuse an access.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Refusal {
    pub(crate) reason: Reason,
    pub(crate) coarse: FaultReason,
    pub(crate) walk: Option<Walk>,
}

impl Refusal {
    pub(crate) const fn of(reason: Reason, coarse: FaultReason) -> Self {
        Self {
            reason,
            coarse,
            walk: None,
        }
    }
}

impl Domain {
    /// The page of `address` by the tables as they are now, with the flags set
    /// that an access of this kind sets.
    #[inline]
    pub(crate) fn walk(
        &self,
        limits: &Limits,
        ram: &dyn Memory,
        address: u64,
        access: Access,
        privilege: Privilege,
    ) -> Result<Page, Refusal> {
        let scalable = self.head.scalable();
        match self.space(limits) {
            Space::PassThrough if limits.fits(address) => Ok(Page {
                output: address,
                mask: 1_u64.unbounded_shl(limits.output_bits).wrapping_sub(1),
                permissions: Permissions::ALL,
                settled: true,
                cut: false,
            }),
            Space::PassThrough => Err(Refusal::of(width(scalable), FaultReason::Reserved)),
            Space::Second(format, root) => {
                let found = walk(&format, root, &ram, address, access, Privilege::User);
                let found = found.map_err(|stop| second(&format, &stop, access, scalable))?;
                Ok(page(&format, found, access))
            }
            Space::First(format, root) => {
                self.serves(access, privilege)?;
                let found = walk(&format, root, &ram, address, access, privilege);
                let found = found.map_err(|stop| {
                    let why = match &stop.reason {
                        Why::Table(_) if stop.entry != 0 => Reason::FIRST_FLAG,
                        Why::Table(_) if stop.level == format.top() => Reason::FIRST_ROOT_ACCESS,
                        _ => Reason::FIRST_ACCESS,
                    };
                    first(&stop, access, privilege, why)
                })?;
                Ok(page(&format, found, access))
            }
            Space::Nested { first, second } => {
                self.serves(access, privilege)?;
                nested(first, second, ram, (address, access, privilege))
            }
        }
    }

    /// Whether the first stage serves requests of this kind at all.
    #[inline]
    pub(crate) fn serves(&self, access: Access, privilege: Privilege) -> Result<(), Refusal> {
        if privilege == Privilege::User && access != Access::Execute
            || matches!(self.head.kind(), Kind::PassThrough | Kind::Second)
        {
            return Ok(());
        }
        let reason = if privilege == Privilege::Supervisor && !self.head.supervisor() {
            Reason::SM_NO_SUPERVISOR
        } else if access == Access::Execute && !self.head.execute() {
            Reason::SM_NO_EXECUTE_REQUESTS
        } else {
            return Ok(());
        };
        Err(Refusal::of(reason, FaultReason::Permission))
    }
}

fn page<F: Format>(format: &F, found: Translation, access: Access) -> Page {
    let read = format.touched(found.entry, true, Access::Read);
    Page {
        output: found.output,
        mask: found.mask,
        permissions: found.permissions,
        settled: matches!(access, Access::Write | Access::Atomic)
            || format.touched(found.entry, true, Access::Write) == read,
        cut: false,
    }
}

fn nested(
    (first_format, first_root): (FirstStage, u64),
    (second_format, second_root): (SecondStage, u64),
    ram: &dyn Memory,
    (address, access, privilege): (u64, Access, Privilege),
) -> Result<Page, Refusal> {
    let behind = Behind {
        format: &second_format,
        root: second_root,
        tables: &ram,
    };
    let inner = walk(
        &first_format,
        first_root,
        &behind,
        address,
        access,
        privilege,
    );
    let inner = inner
        .map_err(|stop| behind_second(&first_format, &second_format, &stop, access, privilege))?;
    let outer = walk(
        &second_format,
        second_root,
        &ram,
        inner.output,
        access,
        Privilege::User,
    );
    let outer = outer.map_err(|stop| {
        let mut refusal = second(&second_format, &stop, access, true);
        if refusal.reason == Reason::SM_ADDRESS_WIDTH {
            refusal.reason = Reason::SM_NESTED_WIDTH;
        }
        refusal
    })?;
    let (a, b) = (
        page(&first_format, inner, access),
        page(&second_format, outer, access),
    );
    Ok(Page {
        output: b.output,
        mask: a.mask.min(b.mask),
        permissions: a.permissions & b.permissions,
        settled: a.settled && b.settled,
        cut: a.mask > b.mask,
    })
}

const fn width(scalable: bool) -> Reason {
    if scalable {
        Reason::SM_ADDRESS_WIDTH
    } else {
        Reason::ADDRESS_WIDTH
    }
}

/// The right that is missing.
const fn missing(access: Access, permissions: Permissions, privilege: Privilege) -> Access {
    let rights = permissions.rights(privilege);
    match access {
        Access::Write | Access::Atomic if !rights.can_write() => Access::Write,
        Access::Execute if rights.can_read() => Access::Execute,
        _ => Access::Read,
    }
}

/// Where the walk of `stage` ended.
const fn place<E>(stage: Stage, stop: &Stop<E>) -> Option<Walk> {
    let table = stop.address & !0xfff;
    Some(Walk {
        stage,
        level: stop.level,
        table: Gpa(table),
    })
}

/// Why the second stage refuses.
#[cold]
fn second(
    format: &SecondStage,
    stop: &Stop<MemoryError>,
    access: Access,
    scalable: bool,
) -> Refusal {
    let root = stop.level == format.top() && stop.entry == 0;
    let denied = match missing(access, stop.permissions, Privilege::User) {
        Access::Write if scalable => Reason::SM_NO_WRITE,
        Access::Write => Reason::NO_WRITE,
        Access::Execute => Reason::NO_EXECUTE,
        _ if scalable => Reason::SM_NO_READ,
        _ => Reason::NO_READ,
    };
    let writes = matches!(access, Access::Write | Access::Atomic);
    let (reason, coarse) = match stop.reason {
        Why::Address => (width(scalable), FaultReason::Reserved),
        Why::Absent if scalable => (Reason::SM_SECOND_ABSENT, FaultReason::NotMapped),
        Why::Absent if writes => (Reason::NO_WRITE, FaultReason::NotMapped),
        Why::Absent => (Reason::NO_READ, FaultReason::NotMapped),
        Why::Reserved if scalable => (Reason::SM_SECOND_RESERVED, FaultReason::Reserved),
        Why::Reserved => (Reason::SECOND_RESERVED, FaultReason::Reserved),
        Why::Permission => (denied, FaultReason::Permission),
        Why::Table(_) | Why::Unsteady => {
            let reason = match (scalable, root) {
                (true, true) => Reason::SM_SECOND_ROOT_ACCESS,
                (true, false) => Reason::SM_SECOND_ACCESS,
                (false, true) => Reason::CONTEXT_INVALID,
                (false, false) => Reason::SECOND_ACCESS,
            };
            (reason, FaultReason::Reserved)
        }
    };
    Refusal {
        reason,
        coarse,
        walk: place(Stage::Second, stop),
    }
}

/// Why the first stage refuses; `unreadable` if an entry cannot be accessed.
#[cold]
fn first<E>(stop: &Stop<E>, access: Access, privilege: Privilege, unreadable: Reason) -> Refusal {
    let (reason, coarse) = match stop.reason {
        Why::Address => (Reason::NOT_CANONICAL, FaultReason::Reserved),
        Why::Absent => (Reason::FIRST_ABSENT, FaultReason::NotMapped),
        Why::Reserved => (Reason::FIRST_RESERVED, FaultReason::Reserved),
        Why::Permission => {
            let user = privilege == Privilege::User;
            let reason = if user && !stop.permissions.rights(privilege).can_read() {
                Reason::NOT_USER
            } else if missing(access, stop.permissions, privilege) == Access::Execute {
                Reason::NO_EXECUTE
            } else {
                Reason::SM_NO_WRITE
            };
            (reason, FaultReason::Permission)
        }
        Why::Table(_) | Why::Unsteady => (unreadable, FaultReason::Reserved),
    };
    Refusal {
        reason,
        coarse,
        walk: place(Stage::First, stop),
    }
}

/// Why the first stage refuses whose tables lie behind the second.
#[cold]
fn behind_second(
    format: &FirstStage,
    second_format: &SecondStage,
    stop: &Stop<BehindError<MemoryError>>,
    access: Access,
    privilege: Privilege,
) -> Refusal {
    let root = stop.level == format.top();
    let flag = stop.entry != 0;
    let allows_not = match (flag, root) {
        (true, _) => Reason::FIRST_NO_WRITE,
        (false, true) => Reason::FIRST_ROOT_NO_READ,
        (false, false) => Reason::FIRST_NO_READ,
    };
    match &stop.reason {
        Why::Table(BehindError::Stage { stop: outer, .. }) => {
            let mut refusal = second(second_format, outer, Access::Read, true);
            match outer.reason {
                Why::Address => refusal.reason = Reason::FIRST_TABLE_WIDTH,
                Why::Absent | Why::Permission => refusal.reason = allows_not,
                _ => {}
            }
            refusal
        }
        Why::Table(BehindError::Memory(_)) if flag => {
            first(stop, access, privilege, Reason::FIRST_FLAG)
        }
        Why::Table(BehindError::Memory(_)) if root => {
            first(stop, access, privilege, Reason::FIRST_ROOT_ACCESS)
        }
        _ => first(stop, access, privilege, Reason::FIRST_ACCESS),
    }
}
