//! Admin commands. NVM Express 1.4 section 5.

use super::BLOCK_SHIFT;
use super::event;
use super::prp::PAGE;
use super::queue::{CompletionQueue, SubmissionQueue};
use super::spec::command::{Command, admin as opcode, halves, low_byte};
use super::spec::completion::Status;
use super::spec::identify::{self, cns};
use super::spec::{command, completion, log};
use super::state::{LAST_ENTRY, State};
use super::worker::{MAX_TRANSFER, MDTS, Quantum, Reply, Stop};

/// Queues are physically contiguous, in Dword 11 of Create.
const CONTIGUOUS: u32 = 1 << 0;
/// Interrupts Enabled, in Dword 11 of Create I/O Completion Queue.
const INTERRUPTS: u32 = 1 << 1;
/// Retain Asynchronous Event, in Dword 10 of Get Log Page.
const RETAIN: u32 = 1 << 15;
/// The command of Abort was not aborted, in Dword 0 of its completion.
const NOT_ABORTED: u32 = 1;

impl Quantum<'_> {
    /// Executes an admin command.
    pub(super) fn admin(&mut self, command: &Command) -> Result<Reply, Stop> {
        let cid = command.cdw0.cid();
        if self.with(|state| state.events.is_held(cid))? {
            return Err(Status::ID_CONFLICT.into());
        }
        let dw0 = match command.cdw0.opcode() {
            opcode::DELETE_SQ => self.with(|state| delete_submission(state, command))??,
            opcode::CREATE_SQ => self.with(|state| create_submission(state, command))??,
            opcode::DELETE_CQ => self.with(|state| delete_completion(state, command))??,
            opcode::CREATE_CQ => self.with(|state| create_completion(state, command))??,
            opcode::GET_LOG_PAGE => self.get_log_page(command)?,
            opcode::IDENTIFY => self.identify(command)?,
            opcode::ABORT => self.abort(command)?,
            opcode::SET_FEATURES => self.with(|state| {
                let limits = state.limits();
                state.features.set(command, &limits)
            })??,
            opcode::GET_FEATURES => {
                self.with(|state| state.features.get(command, &state.limits()))??
            }
            opcode::ASYNC_EVENT => {
                return match self.with(|state| state.events.hold(cid))? {
                    true => Ok(Reply::Hold),
                    false => Err(Status::EVENT_LIMIT.into()),
                };
            }
            _ => return Err(Status::INVALID_OPCODE.into()),
        };
        Ok(Reply::Complete(dw0))
    }

    fn identify(&mut self, command: &Command) -> Result<u32, Stop> {
        let nsid = command.nsid;
        let page = match low_byte(command.cdw10) {
            cns::NAMESPACE if nsid == 1 => identify::namespace(self.nvme.blocks(), BLOCK_SHIFT),
            cns::NAMESPACE_DESCRIPTORS if nsid == 1 => identify::descriptors(&self.nvme.uuid),
            cns::NAMESPACE | cns::NAMESPACE_DESCRIPTORS => {
                return Err(Status::INVALID_NAMESPACE.into());
            }
            cns::CONTROLLER => identify::Controller {
                vendor: super::VENDOR,
                serial: &self.nvme.serial,
                uuid: &self.nvme.uuid,
                mdts: MDTS,
                async_events: event::LIMIT,
            }
            .page(),
            // The two highest identifiers have nothing above them.
            cns::ACTIVE_NAMESPACES if nsid >= u32::MAX.saturating_sub(1) => {
                return Err(Status::INVALID_NAMESPACE.into());
            }
            cns::ACTIVE_NAMESPACES => identify::active_namespaces(nsid),
            _ => return Err(Status::INVALID_FIELD.into()),
        };
        self.answer(command, &page.0)?;
        Ok(0)
    }

    fn get_log_page(&mut self, command: &Command) -> Result<u32, Stop> {
        let (_, count_low) = halves(command.cdw10);
        let (count_high, _) = halves(command.cdw11);
        let last = u64::from(count_high) << 16 | u64::from(count_low);
        let length = last.saturating_add(1).saturating_mul(4);
        let offset = u64::from(command.cdw13) << 32 | u64::from(command.cdw12);
        let (counters, error) = self.with(|state| (state.counters, state.last_error))?;
        let (smart, firmware, errors) = (counters.page(), log::firmware(), error.page());
        let page: &[u8] = match low_byte(command.cdw10) {
            log::id::ERROR => &errors.0,
            log::id::SMART => &smart.0,
            log::id::FIRMWARE => &firmware.0,
            _ => return Err(Status::LOG_PAGE.into()),
        };
        let rest = usize::try_from(offset).ok().and_then(|at| page.get(at..));
        let rest = rest.filter(|_| offset.is_multiple_of(4));
        let rest = rest.ok_or(Status::INVALID_FIELD)?;
        if length > MAX_TRANSFER {
            return Err(Status::INVALID_FIELD.into());
        }
        // What lies beyond the page is not defined; zeros are.
        let mut bytes = rest.to_vec();
        bytes.resize(usize::try_from(length).unwrap_or_default(), 0);
        self.answer(command, &bytes)?;
        let is_error = low_byte(command.cdw10) == log::id::ERROR;
        if is_error && command.cdw10 & RETAIN == 0 {
            self.with(|state| state.events.clear())?;
        }
        Ok(0)
    }

    /// Nothing is ever under way beside a held Asynchronous Event Request.
    fn abort(&mut self, command: &Command) -> Result<u32, Stop> {
        let (sq, cid) = halves(command.cdw10);
        // Two completions follow, so that there must be room for both.
        let aborted =
            self.with(|state| sq == 0 && state.room(0) >= 2 && state.events.abort(cid))?;
        if !aborted {
            return Ok(NOT_ABORTED);
        }
        self.complete(0, cid, 0, Status::ABORT_REQUESTED)?;
        Ok(0)
    }
}

/// The identifier, size, address and attributes that Create names, checked as
/// far as both kinds of queue have them in common.
fn creation(
    state: &State,
    command: &Command,
    exists: bool,
    (exponent, size): (u8, u64),
) -> Result<(u16, u16), Status> {
    let (id, last) = halves(command.cdw10);
    if id == 0 || id > state.queues() || exists {
        return Err(Status::INVALID_QUEUE);
    }
    if last == 0 || last > LAST_ENTRY {
        return Err(Status::QUEUE_SIZE);
    }
    if command.cdw11 & CONTIGUOUS == 0 || 1_u64.checked_shl(exponent.into()) != Some(size) {
        return Err(Status::INVALID_FIELD);
    }
    if !command.prp1.is_multiple_of(PAGE) {
        return Err(Status::PRP_OFFSET);
    }
    Ok((id, last))
}

fn create_completion(state: &mut State, command: &Command) -> Result<u32, Status> {
    let (id, _) = halves(command.cdw10);
    let exists = state.completion(id).is_some();
    let entry = (state.cc().iocqes(), completion::SIZE);
    let (id, last) = creation(state, command, exists, entry)?;
    let (_, vector) = halves(command.cdw11);
    if vector > state.queues() {
        return Err(Status::INTERRUPT_VECTOR);
    }
    let interrupts = command.cdw11 & INTERRUPTS != 0;
    let queue = CompletionQueue::new(command.prp1, last, vector, interrupts);
    state.set_completion(id, Some(queue));
    Ok(0)
}

fn create_submission(state: &mut State, command: &Command) -> Result<u32, Status> {
    let (id, _) = halves(command.cdw10);
    let exists = state.submission(id).is_some();
    let entry = (state.cc().iosqes(), command::SIZE);
    let (_, cq) = halves(command.cdw11);
    let (id, last) = creation(state, command, exists, entry)?;
    if cq == 0 || state.completion(cq).is_none() {
        return Err(Status::INVALID_CQ);
    }
    state.set_submission(id, Some(SubmissionQueue::new(command.prp1, last, cq)));
    Ok(0)
}

fn delete_submission(state: &mut State, command: &Command) -> Result<u32, Status> {
    let (id, _) = halves(command.cdw10);
    if id == 0 || state.submission(id).is_none() {
        return Err(Status::INVALID_QUEUE);
    }
    state.set_submission(id, None);
    Ok(0)
}

fn delete_completion(state: &mut State, command: &Command) -> Result<u32, Status> {
    let (id, _) = halves(command.cdw10);
    if id == 0 || state.completion(id).is_none() {
        return Err(Status::INVALID_QUEUE);
    }
    if state.is_used(id) {
        return Err(Status::QUEUE_DELETION);
    }
    state.set_completion(id, None);
    Ok(0)
}
