//! Pages that several mappings share: pinned once, counted once, and kept
//! until the last mapping lets go. Linux `drivers/iommu/iommufd/pages.c`,
//! `struct iopt_pages`.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use iogate_dma::Rights;

use crate::ledger::{Charge, Ledger};
use crate::part::{Part, part_of};
use crate::{Caller, HostConfig, Memlock, MemlockMode, Pages, Payer, PinError, Pinned};

/// Against whose limit pinned memory counts. IOMMU_OPTION_RLIMIT_MODE.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum RlimitMode {
    /// The user's, over all processes: 0.
    #[default]
    User,
    /// The process's address space: 1.
    Process,
}

/// The account of the process that made a mapping, as it stood then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Account {
    payer: Payer,
    limit: u64,
}

/// A client's pages as the mappings that share them see them.
#[derive(Debug)]
pub(crate) struct SharedPages {
    pages: Arc<dyn Pages>,
    /// What the first mapping allowed; a copy may not write where that could
    /// not.
    rights: Rights,
    ledger: Arc<Ledger>,
    /// `None`: nobody pays, since the process is exempt or nothing is enforced.
    account: Mutex<Option<Account>>,
    pins: Mutex<Vec<Weak<Pin>>>,
}

impl Account {
    /// Who pays for what `caller` pins.
    pub(super) fn of(config: &HostConfig, caller: &dyn Caller, mode: RlimitMode) -> Option<Self> {
        let memlock = match config.memlock {
            MemlockMode::Off => Memlock::Exempt,
            MemlockMode::Enforce => caller.memlock(),
        };
        let payer = match mode {
            RlimitMode::User => Payer::User(caller.user()),
            RlimitMode::Process => Payer::Process(caller.address_space()),
        };
        match memlock {
            Memlock::Exempt => None,
            Memlock::Limit(limit) => Some(Self { payer, limit }),
        }
    }
}

/// Another is to pay for pinned pages: what he is charged already.
pub(super) struct Change {
    pages: Arc<SharedPages>,
    account: Option<Account>,
    charges: Vec<(Arc<Pin>, Option<Charge>)>,
}

impl Change {
    /// Has `account` pay for what is pinned of `pages`, beside who pays now.
    /// ENOMEM past his limit.
    pub(super) fn prepare(
        pages: Arc<SharedPages>,
        account: Option<Account>,
    ) -> Result<Self, PinError> {
        let mut charges = Vec::new();
        let pins = pages.pins.lock().unwrap_or_else(PoisonError::into_inner);
        for pin in pins.iter().filter_map(Weak::upgrade) {
            let charge = pages.charge(account, pin.length)?;
            charges.push((pin, charge));
        }
        drop(pins);
        Ok(Self {
            pages,
            account,
            charges,
        })
    }

    /// Who paid until now does not any more.
    pub(super) fn make(self) {
        let account = &self.pages.account;
        *account.lock().unwrap_or_else(PoisonError::into_inner) = self.account;
        for (pin, charge) in self.charges {
            *pin.charge.lock().unwrap_or_else(PoisonError::into_inner) = charge;
        }
    }
}

impl SharedPages {
    /// `pages`, named by a mapping of `caller` that allows `rights`.
    pub(crate) fn new(
        pages: Arc<dyn Pages>,
        rights: Rights,
        (config, ledger): (&HostConfig, &Arc<Ledger>),
        (caller, mode): (&dyn Caller, RlimitMode),
    ) -> Self {
        Self {
            pages,
            rights,
            ledger: Arc::clone(ledger),
            account: Mutex::new(Account::of(config, caller, mode)),
            pins: Mutex::default(),
        }
    }

    /// `rights` and those of the first mapping.
    fn with_own(&self, rights: Rights) -> Rights {
        Rights::from_bits(rights.bits() | self.rights.bits())
    }

    fn charge(&self, account: Option<Account>, length: u64) -> Result<Option<Charge>, PinError> {
        let Some(account) = account else {
            return Ok(None);
        };
        let charge = self.ledger.charge(account.payer, account.limit, length);
        charge.map(Some).ok_or(PinError::NoMemory)
    }
}

impl Pages for SharedPages {
    fn pin(&self, offset: u64, length: u64, rights: Rights) -> Result<Box<dyn Pinned>, PinError> {
        let rights = self.with_own(rights);
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pin) = find(&mut pins, offset, length, rights) {
            return Ok(Box::new(share(pin, offset, length)));
        }
        let account = *self.account.lock().unwrap_or_else(PoisonError::into_inner);
        let charge = self.charge(account, length)?;
        let pinned = self.pages.pin(offset, length, rights)?;
        if let Some(address) = pinned.device_address() {
            return Err(PinError::Fault(address));
        }
        let pin = Arc::new(Pin {
            offset,
            length,
            rights,
            pinned,
            charge: Mutex::new(charge),
        });
        pins.push(Arc::downgrade(&pin));
        Ok(Box::new(share(pin, offset, length)))
    }

    /// Linux `iopt_pages_rw_access`, which copies by the process's addresses.
    fn lend(&self, offset: u64, length: u64, rights: Rights) -> Result<Box<dyn Pinned>, PinError> {
        let rights = self.with_own(rights);
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        match find(&mut pins, offset, length, rights) {
            Some(pin) => Ok(Box::new(share(pin, offset, length))),
            None => self.pages.lend(offset, length, rights),
        }
    }

    fn start(&self) -> u64 {
        self.pages.start()
    }

    fn is_file(&self) -> bool {
        self.pages.is_file()
    }

    fn is_memory(&self) -> bool {
        self.pages.is_memory()
    }

    fn is_revoked(&self) -> bool {
        self.pages.is_revoked()
    }

    fn address_space(&self) -> u64 {
        self.pages.address_space()
    }

    fn outdate(&self) {
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        pins.clear();
    }

    fn is_writable(&self) -> bool {
        self.rights.can_write()
    }
}

/// A pinned part of the pages.
struct Pin {
    offset: u64,
    length: u64,
    rights: Rights,
    pinned: Box<dyn Pinned>,
    /// Gives back what it counts for with the pin.
    charge: Mutex<Option<Charge>>,
}

impl Pin {
    fn covers(&self, offset: u64, length: u64, rights: Rights) -> bool {
        let within = offset.checked_sub(self.offset);
        let end = within.and_then(|within| within.checked_add(length));
        end.is_some_and(|end| end <= self.length) && self.rights.covers(rights)
    }
}

impl std::fmt::Debug for Pin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pin")
            .field("offset", &format_args!("{:#x}", self.offset))
            .field("length", &format_args!("{:#x}", self.length))
            .finish_non_exhaustive()
    }
}

/// A pin that covers the range, of those that still stand.
fn find(pins: &mut Vec<Weak<Pin>>, offset: u64, length: u64, rights: Rights) -> Option<Arc<Pin>> {
    pins.retain(|pin| pin.strong_count() > 0);
    let mut known = pins.iter().filter_map(Weak::upgrade);
    known.find(|pin| pin.covers(offset, length, rights))
}

/// One mapping's part of a pin: the `length` bytes at `offset` of the pages.
fn share(pin: Arc<Pin>, offset: u64, length: u64) -> Part<Arc<Pin>> {
    let skip = offset.saturating_sub(pin.offset);
    let (segments, private) = part_of(&*pin.pinned, skip, length);
    Part::new(pin, segments, private)
}

#[cfg(test)]
mod tests {
    use iogate_space::Segment;

    use super::*;

    #[derive(Debug)]
    struct Bytes(Mutex<Vec<(u64, u64)>>);

    struct Plain(Vec<Segment>, Vec<(u64, u64)>);

    impl Pinned for Plain {
        fn segments(&self) -> &[Segment] {
            &self.0
        }
        fn private(&self) -> &[(u64, u64)] {
            &self.1
        }
    }

    impl Pages for Bytes {
        fn pin(&self, offset: u64, length: u64, _: Rights) -> Result<Box<dyn Pinned>, PinError> {
            self.0.lock().unwrap().push((offset, length));
            let (near, far) = (length / 2, length - length / 2);
            let segments = vec![
                Segment {
                    length: near,
                    output: 0x10_0000 + offset,
                },
                Segment {
                    length: far,
                    output: 0x90_0000 + offset,
                },
            ];
            Ok(Box::new(Plain(segments, vec![(near, far)])))
        }
        fn start(&self) -> u64 {
            0x7000
        }
        fn is_file(&self) -> bool {
            false
        }
        fn address_space(&self) -> u64 {
            1
        }
    }

    fn shared(account: Option<Account>) -> (Arc<Bytes>, Arc<Ledger>, SharedPages) {
        let bytes = Arc::new(Bytes(Mutex::default()));
        let ledger = Arc::new(Ledger::default());
        let pages = SharedPages {
            pages: Arc::clone(&bytes) as Arc<dyn Pages>,
            rights: Rights::READ,
            ledger: Arc::clone(&ledger),
            account: Mutex::new(account),
            pins: Mutex::default(),
        };
        (bytes, ledger, pages)
    }

    /// drivers/iommu/iommufd/pages.c, iopt_area_fill_domain.
    #[test]
    fn a_part_of_pinned_pages_is_not_pinned_again() {
        let (bytes, _, pages) = shared(None);
        let whole = pages.pin(0x1000, 0x4000, Rights::READ).unwrap();
        let part = pages.pin(0x2000, 0x2000, Rights::READ).unwrap();
        assert_eq!(*bytes.0.lock().unwrap(), [(0x1000, 0x4000)]);
        let (near, far) = (
            Segment {
                length: 0x1000,
                output: 0x10_2000,
            },
            Segment {
                length: 0x1000,
                output: 0x90_1000,
            },
        );
        assert_eq!(part.segments(), [near, far]);
        assert_eq!(part.private(), [(0x1000, 0x1000)]);
        drop(whole);
        let again = pages.pin(0x1000, 0x4000, Rights::READ).unwrap();
        assert_eq!(bytes.0.lock().unwrap().len(), 1, "the part keeps the pin");
        drop((part, again));
        let _anew = pages.pin(0x2000, 0x2000, Rights::READ).unwrap();
        assert_eq!(bytes.0.lock().unwrap().len(), 2);
    }

    /// drivers/iommu/iommufd/pages.c, iopt_pages_update_pinned.
    #[test]
    fn pinned_pages_are_paid_for_once_and_until_the_last_lets_go() {
        let payer = Payer::User(5);
        let limit = 0x6000;
        let (_, ledger, pages) = shared(Some(Account { payer, limit }));
        let whole = pages.pin(0, 0x4000, Rights::READ).unwrap();
        let part = pages.pin(0, 0x1000, Rights::READ).unwrap();
        assert_eq!(ledger.sum(payer), 0x4000);
        let more = pages.pin(0x8000, 0x2001, Rights::READ).err();
        assert_eq!(more, Some(PinError::NoMemory));
        drop(whole);
        assert_eq!(ledger.sum(payer), 0x4000);
        drop(part);
        assert_eq!(ledger.sum(payer), 0);
    }
}
