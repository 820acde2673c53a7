//! Features: what Get and Set Features know. NVM Express 1.4 section 5.21.1.

use super::spec::command::{Command, halves, low_byte};
use super::spec::completion::Status;
use super::spec::feature::{self, Select};

/// The values of the features that can be set, Dword 11 of each.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Features {
    arbitration: u32,
    power: u32,
    over_temperature: u16,
    under_temperature: u16,
    error_recovery: u32,
    write_cache: u32,
    coalescing: u32,
    /// Vectors with Coalescing Disable.
    vectors: u128,
    atomicity: u32,
    async_events: u32,
}

impl Default for Features {
    fn default() -> Self {
        Self {
            arbitration: 0,
            power: 0,
            over_temperature: 343,
            under_temperature: 0,
            error_recovery: 0,
            write_cache: 1,
            coalescing: 0,
            vectors: 0,
            atomicity: 0,
            async_events: 0,
        }
    }
}

/// What features depend on.
pub(super) struct Limits {
    /// I/O queue pairs.
    pub(super) queues: u16,
    /// Whether an I/O queue exists.
    pub(super) has_queues: bool,
}

impl Limits {
    /// Number of Queues, both counts less one.
    fn queues(&self) -> u32 {
        let last = u32::from(self.queues.saturating_sub(1));
        last << 16 | last
    }
}

impl Features {
    /// Volatile Write Cache Enable.
    pub(super) fn caches_writes(&self) -> bool {
        self.write_cache & 1 != 0
    }

    /// Get Features: Dword 0 of the completion.
    pub(super) fn get(&self, command: &Command, limits: &Limits) -> Result<u32, Status> {
        let id = low_byte(command.cdw10);
        let value = self.value(id, command.cdw11, limits)?;
        match Select::parse(command.cdw10).ok_or(Status::INVALID_FIELD)? {
            Select::Current => Ok(value),
            Select::Default => Self::default().value(id, command.cdw11, limits),
            Select::Supported => Ok(match id {
                feature::ERROR_RECOVERY => feature::CHANGEABLE | feature::PER_NAMESPACE,
                _ => feature::CHANGEABLE,
            }),
        }
    }

    fn value(&self, id: u8, cdw11: u32, limits: &Limits) -> Result<u32, Status> {
        Ok(match id {
            feature::ARBITRATION => self.arbitration,
            feature::POWER => self.power,
            // Composite temperature only; Threshold Type Select 1 is under.
            feature::TEMPERATURE => match (cdw11 >> 16 & 0xf, cdw11 >> 20 & 3) {
                (0, 0) => self.over_temperature.into(),
                (0, 1) => self.under_temperature.into(),
                _ => return Err(Status::INVALID_FIELD),
            },
            feature::ERROR_RECOVERY => self.error_recovery,
            feature::WRITE_CACHE => self.write_cache,
            feature::QUEUES => limits.queues(),
            feature::COALESCING => self.coalescing,
            feature::VECTOR => {
                let (vector, bit) = vector(cdw11, limits)?;
                u32::from(vector) | u32::from(self.vectors & bit != 0) << 16
            }
            feature::ATOMICITY => self.atomicity,
            feature::ASYNC_EVENTS => self.async_events,
            _ => return Err(Status::INVALID_FIELD),
        })
    }

    /// Set Features: Dword 0 of the completion.
    pub(super) fn set(&mut self, command: &Command, limits: &Limits) -> Result<u32, Status> {
        let id = low_byte(command.cdw10);
        let cdw11 = command.cdw11;
        // Which features there are, before anything else about them.
        self.value(id, 0, limits)?;
        if command.cdw10 & feature::SAVE != 0 {
            return Err(Status::NOT_SAVEABLE);
        }
        match id {
            feature::ARBITRATION => self.arbitration = cdw11,
            // There is power state 0 only.
            feature::POWER if cdw11 & 0x1f != 0 => return Err(Status::INVALID_FIELD),
            feature::POWER => self.power = cdw11 & 0xff,
            feature::TEMPERATURE => {
                let (kelvins, _) = halves(cdw11);
                match (cdw11 >> 16 & 0xf, cdw11 >> 20 & 3) {
                    // 15: every sensor that is implemented.
                    (0 | 15, 0) => self.over_temperature = kelvins,
                    (0 | 15, 1) => self.under_temperature = kelvins,
                    _ => return Err(Status::INVALID_FIELD),
                }
            }
            feature::ERROR_RECOVERY => self.error_recovery = cdw11 & 0xffff,
            feature::WRITE_CACHE => self.write_cache = cdw11 & 1,
            feature::QUEUES => {
                let (submission, completion) = halves(cdw11);
                if submission == u16::MAX || completion == u16::MAX {
                    return Err(Status::INVALID_FIELD);
                }
                if limits.has_queues {
                    return Err(Status::SEQUENCE);
                }
                return Ok(limits.queues());
            }
            feature::COALESCING => self.coalescing = cdw11 & 0xffff,
            feature::VECTOR => {
                let (_, bit) = vector(cdw11, limits)?;
                match cdw11 & 1 << 16 != 0 {
                    true => self.vectors |= bit,
                    false => self.vectors &= !bit,
                }
            }
            feature::ATOMICITY => self.atomicity = cdw11 & 1,
            feature::ASYNC_EVENTS => self.async_events = cdw11,
            _ => return Err(Status::INVALID_FIELD),
        }
        Ok(0)
    }
}

/// The vector that Dword 11 names, and its bit.
fn vector(cdw11: u32, limits: &Limits) -> Result<(u16, u128), Status> {
    let (vector, _) = halves(cdw11);
    match vector <= limits.queues {
        true => Ok((vector, 1_u128.wrapping_shl(vector.into()))),
        false => Err(Status::INVALID_FIELD),
    }
}
