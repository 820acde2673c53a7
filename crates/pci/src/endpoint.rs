//! What every function has in common: configuration space, BARs, interrupts.

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iogate_dma::{Interrupts, Line, Message, SharedMemory, Source};

use crate::config::{ConfigSpace, capability, register, status};
use crate::layout::MsixLayout;
use crate::message::MsiRegisters;
use crate::migrate::{StateError, StateReader, StateWriter};
use crate::msix::Table;
use crate::sriov::SrIov;
use crate::{Bar, Builder, Command, Identity, Life, Msix};

/// What a write to configuration space asks of the caller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum ConfigEffect {
    /// Nothing: the write is done.
    None,
    /// Initiate Function Level Reset was written: reset the function.
    FunctionReset,
}

/// Why interrupts cannot be enabled.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InterruptError {
    /// The function does not have this kind of interrupt.
    #[error("the function does not have this kind of interrupt")]
    Unsupported,
    /// More vectors than the function has, or none.
    #[error("{asked} vectors asked for, the function has {offered}")]
    Vectors {
        /// Vectors asked for.
        asked: u16,
        /// Vectors that there are.
        offered: u16,
    },
}

/// What a builder has put together.
pub(crate) struct Parts {
    pub(crate) source: Source,
    pub(crate) interrupts: Arc<dyn Interrupts>,
    pub(crate) config: ConfigSpace,
    pub(crate) bars: [Option<Bar>; 6],
    pub(crate) memory: Option<(u8, Arc<dyn SharedMemory>)>,
    pub(crate) msix: Option<MsixLayout>,
    pub(crate) sr_iov: Option<SrIov>,
    /// Where the PASID capability is, and its width.
    pub(crate) pasid: Option<(u16, u8)>,
}

/// Configuration space, BARs and interrupts of one function.
///
/// Three parties use it. Software, by [`read_config`](Self::read_config) and
/// [`write_config`](Self::write_config) and the MSI-X table in BAR space. The
/// model, by [`raise`](Self::raise) and [`set_line`](Self::set_line). And a
/// host that programs vectors on software's behalf, as the kernel does for
/// VFIO: [`enable_msi`](Self::enable_msi), [`enable_msix`](Self::enable_msix),
/// [`msix`](Self::msix), [`disable_messages`](Self::disable_messages).
///
/// Messages are memory writes: without Bus Master Enable they stay pending.
/// The [`Interrupts`] above are told while the endpoint's state is locked, so
/// that a vector is silent once it is masked; they must not call back.
pub struct Endpoint {
    source: Source,
    interrupts: Arc<dyn Interrupts>,
    bars: [Option<Bar>; 6],
    memory: Option<(u8, Arc<dyn SharedMemory>)>,
    msi: Option<MsiRegisters>,
    msix: Option<MsixLayout>,
    express: Option<u16>,
    pub(crate) sr_iov: Option<SrIov>,
    pasid: Option<(u16, u8)>,
    /// Bits of the PASIDs that may be sent.
    pasid_bits: AtomicU8,
    /// Where the control register of ATS is; 0 without it.
    pub(crate) ats_control: AtomicU16,
    /// The Command register, readable without the lock.
    command: AtomicU16,
    life: AtomicU64,
    state: Mutex<State>,
}

struct State {
    config: ConfigSpace,
    table: Option<Table>,
    msi_pending: u32,
    /// What the model asks for.
    line: Line,
    /// What was last told to the bus above.
    line_told: Line,
    /// Nothing is told: messages stay pending, the line as it was.
    held: bool,
}

/// What of an endpoint moves with its function's state, checked.
pub(crate) struct Moved {
    /// Offset and value of bytes of configuration space.
    config: Vec<(u16, u8)>,
    msix_pending: Vec<u16>,
    msi_pending: u32,
}

impl Endpoint {
    /// Begins the layout of an endpoint.
    pub fn builder(identity: Identity) -> Builder {
        Builder::new(identity)
    }

    pub(crate) fn from_parts(parts: Parts) -> Self {
        let config = parts.config;
        let msi = config.capability(capability::MSI);
        let msix_at = config.capability(capability::MSIX);
        Self {
            source: parts.source,
            interrupts: parts.interrupts,
            bars: parts.bars,
            memory: parts.memory,
            msi: msi.map(|at| MsiRegisters::find(&config, at)),
            msix: parts.msix,
            sr_iov: parts.sr_iov,
            pasid: parts.pasid,
            pasid_bits: AtomicU8::new(0),
            ats_control: AtomicU16::new(0),
            express: config.capability(capability::EXPRESS),
            command: AtomicU16::new(0),
            life: AtomicU64::new(0),
            state: Mutex::new(State {
                table: parts
                    .msix
                    .zip(msix_at)
                    .map(|(layout, at)| Table::new(layout, at)),
                config,
                msi_pending: 0,
                line: Line::Deasserted,
                line_told: Line::Deasserted,
                held: false,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who the function's requests come from.
    pub fn source(&self) -> Source {
        self.source
    }

    /// Lets the function send PASIDs of up to `bits` bits, as far as it can, and
    /// says of how many: 0 without the capability. Like what a kernel enables,
    /// and restores, it outlasts resets.
    pub fn enable_pasids(&self, bits: u8) -> u8 {
        let Some((at, width)) = self.pasid.filter(|_| bits != 0) else {
            return 0;
        };
        let control = at.saturating_add(6);
        self.lock().config.define(control, &[1], &[]);
        let bits = bits.min(width);
        self.pasid_bits.store(bits, Ordering::SeqCst);
        bits
    }

    /// Bits of the PASIDs that the function may send; 0: it sends none.
    pub fn pasid_bits(&self) -> u8 {
        self.pasid_bits.load(Ordering::SeqCst)
    }

    /// Where the PCI Express capability is.
    pub(crate) fn express(&self) -> Option<u16> {
        self.express
    }

    /// Where the PASID capability is, and its width.
    pub(crate) fn pasid_capability(&self) -> Option<(u16, u8)> {
        self.pasid
    }

    pub(crate) fn set_pasid_bits(&self, bits: u8) {
        self.pasid_bits.store(bits, Ordering::SeqCst);
    }

    /// The BARs, by index.
    pub fn bars(&self) -> impl Iterator<Item = &Bar> {
        self.bars.iter().flatten()
    }

    /// The BAR with this index.
    pub fn bar(&self, index: u8) -> Option<&Bar> {
        self.bars.get(usize::from(index))?.as_ref()
    }

    /// The plain memory that is one of the BARs, and that BAR's index.
    pub fn memory(&self) -> Option<(u8, &Arc<dyn SharedMemory>)> {
        let (bar, memory) = self.memory.as_ref()?;
        Some((*bar, memory))
    }

    /// The plain memory that BAR `index` is; `None` if it is none.
    pub fn bar_memory(&self, index: u8) -> Option<&Arc<dyn SharedMemory>> {
        let (_, memory) = self.memory().filter(|(bar, _)| *bar == index)?;
        Some(memory)
    }

    /// Does a read of `bar` at `offset` if the BAR is plain memory; says
    /// whether it is. Bytes that cannot be had read as ones.
    pub fn read_memory(&self, bar: u8, offset: u64, into: &mut [u8]) -> bool {
        let memory = self.bar_memory(bar);
        if memory.is_some_and(|memory| memory.read(offset, into).is_err()) {
            into.fill(0xff);
        }
        memory.is_some()
    }

    /// Does a write of `bar` at `offset` if the BAR is plain memory; says
    /// whether it is.
    pub fn write_memory(&self, bar: u8, offset: u64, from: &[u8]) -> bool {
        let memory = self.bar_memory(bar);
        // Bytes that cannot be had take no writes.
        let _ = memory.map(|memory| memory.write(offset, from));
        memory.is_some()
    }

    /// The address in a BAR, without its flags; `None` if there is no such
    /// BAR.
    pub fn bar_address(&self, index: u8) -> Option<u64> {
        let bar = self.bar(index)?;
        let at = register::BAR0.saturating_add(u16::from(index).saturating_mul(4));
        let state = self.lock();
        let low = u64::from(state.config.get32(at));
        let high = match bar.width {
            crate::BarWidth::Bits32 => 0,
            crate::BarWidth::Bits64 => u64::from(state.config.get32(at.saturating_add(4))),
        };
        Some((high << 32 | low) & !bar.size.saturating_sub(1))
    }

    /// The Command register.
    pub fn command(&self) -> Command {
        Command(self.command.load(Ordering::SeqCst))
    }

    /// The offset of the first capability with this id.
    pub fn capability(&self, id: u8) -> Option<u16> {
        self.lock().config.capability(id)
    }

    /// Reads configuration space at any offset, in any length. What lies
    /// beyond byte 4095 reads as ones.
    pub fn read_config(&self, offset: u64, into: &mut [u8]) {
        self.lock().config.read(offset, into);
    }

    /// Writes configuration space at any offset, in any length. Read-only
    /// bits and what lies beyond byte 4095 are left alone.
    pub fn write_config(&self, offset: u64, from: &[u8]) -> ConfigEffect {
        let mut state = self.lock();
        let enabled = self.any_enabled(&state);
        state.config.write(offset, from);
        if enabled && !self.any_enabled(&state) {
            state.forget_messages();
        }
        self.settle(&mut state);
        drop(state);
        self.settle_pasids();
        // Device Control, bit 15.
        let asked = self.express.is_some_and(|at| {
            let byte = u64::from(at).saturating_add(9).checked_sub(offset);
            let byte = byte.and_then(|at| from.get(usize::try_from(at).ok()?));
            byte.is_some_and(|byte| byte & 0x80 != 0)
        });
        match asked {
            true => ConfigEffect::FunctionReset,
            false => ConfigEffect::None,
        }
    }

    /// Looks at the registers, or changes them whatever their masks say.
    pub(crate) fn with_config<T>(&self, work: impl FnOnce(&mut ConfigSpace) -> T) -> T {
        work(&mut self.lock().config)
    }

    /// Says in the Header Type that the device has other functions: for
    /// whoever puts several together.
    pub fn set_multifunction(&self) {
        const MULTIFUNCTION: u8 = 1 << 7;
        let mut state = self.lock();
        state
            .config
            .define(register::HEADER_TYPE, &[MULTIFUNCTION], &[]);
    }

    /// The life that the function is in.
    pub fn life(&self) -> Life {
        Life(self.life.load(Ordering::SeqCst))
    }

    /// Ends the function's life: every register returns to its value at
    /// power-on, vectors are masked, nothing is pending, the line is
    /// deasserted. Only BAR addresses, the Interrupt Line register and the
    /// SR-IOV capability are kept, as if the host had restored them, since
    /// nobody but the host assigns them.
    pub fn reset(&self) {
        let mut state = self.lock();
        self.life.fetch_add(1, Ordering::SeqCst);
        let bars = usize::from(register::BAR0)..usize::from(register::BAR0).saturating_add(24);
        let line = usize::from(register::INTERRUPT_LINE);
        let kept = |at| self.sr_iov.as_ref().is_some_and(|sr_iov| sr_iov.holds(at));
        state
            .config
            .reset(|at| bars.contains(&at) || at == line || kept(at));
        if let Some(table) = &mut state.table {
            table.reset();
        }
        state.msi_pending = 0;
        state.line = Line::Deasserted;
        state.held = false;
        self.settle(&mut state);
        drop(state);
        self.settle_pasids();
    }

    /// Keeps interrupts back until [`release`](Self::release) or a reset:
    /// messages stay pending, the line stays as it was told.
    pub fn hold(&self) {
        self.lock().held = true;
    }

    /// Lets interrupts go, those that were kept back first.
    pub fn release(&self) {
        let mut state = self.lock();
        state.held = false;
        self.settle(&mut state);
    }

    /// The bytes of configuration space that move with the function's state,
    /// each with the bits that software may change: all but the Command
    /// register, BAR addresses, the capabilities of MSI and MSI-X, and the
    /// extended capabilities, which are the host's.
    fn moving_bytes(&self, state: &State) -> Vec<(u16, u8)> {
        let range = |at: u16, length: u16| at..at.saturating_add(length);
        let mut stays = vec![range(register::COMMAND, 2), range(register::BAR0, 24)];
        stays.push(register::EXTENDED..u16::MAX);
        stays.extend(
            state
                .config
                .capability(capability::MSI)
                .map(|at| range(at, 24)),
        );
        stays.extend(
            state
                .config
                .capability(capability::MSIX)
                .map(|at| range(at, 12)),
        );
        let bytes = state.config.changeable();
        bytes
            .filter(|(at, _)| !stays.iter().any(|range| range.contains(at)))
            .collect()
    }

    /// Says which bytes of configuration space move.
    pub(crate) fn moving(&self, into: &mut StateWriter) {
        let state = self.lock();
        let bytes = self.moving_bytes(&state);
        into.u16(u16::try_from(bytes.len()).unwrap_or(u16::MAX));
        for (at, bits) in bytes {
            into.u16(at);
            into.u8(bits);
        }
    }

    /// Writes what moves.
    pub(crate) fn save(&self, into: &mut StateWriter) {
        let state = self.lock();
        for (at, bits) in self.moving_bytes(&state) {
            into.u8(state.config.get8(at) & bits);
        }
        let vectors = self.msix.map_or(0, |msix| msix.vectors);
        for vector in 0..vectors {
            let table = state.table.as_ref();
            into.bool(table.is_some_and(|table| table.is_pending(vector)));
        }
        into.u32(state.msi_pending);
    }

    /// Reads what [`save`](Self::save) of an endpoint with the same layout
    /// wrote.
    pub(crate) fn parse(&self, from: &mut StateReader<'_>) -> Result<Moved, StateError> {
        let bytes = self.moving_bytes(&self.lock());
        let mut config = Vec::with_capacity(bytes.len());
        for (at, bits) in bytes {
            let value = from.u8()?;
            if value & !bits != 0 {
                let what = "bits of configuration space that nobody can set";
                return Err(StateError::Impossible(what));
            }
            config.push((at, value));
        }
        let mut msix_pending = Vec::new();
        for vector in 0..self.msix.map_or(0, |msix| msix.vectors) {
            if from.bool()? {
                msix_pending.push(vector);
            }
        }
        let msi_pending = from.u32()?;
        let offered = u32::from(self.msi_vectors());
        if msi_pending.checked_shr(offered).unwrap_or(0) != 0 {
            return Err(StateError::Impossible("a vector that does not exist"));
        }
        Ok(Moved {
            config,
            msix_pending,
            msi_pending,
        })
    }

    /// Takes over what [`parse`](Self::parse) has read.
    pub(crate) fn load(&self, moved: Moved) {
        let mut state = self.lock();
        let bytes = self.moving_bytes(&state);
        for ((at, bits), (_, new)) in bytes.iter().zip(&moved.config) {
            let value = state.config.get8(*at) & !bits | new;
            state.config.set(*at, &[value]);
        }
        if let Some(table) = &mut state.table {
            table.clear_pending();
            for vector in moved.msix_pending {
                table.set_pending(vector, true);
            }
        }
        state.msi_pending = moved.msi_pending;
        self.settle(&mut state);
    }

    /// The MSI-X structures, if the function has them.
    pub fn msix(&self) -> Option<Msix<'_>> {
        let layout = self.msix?;
        Some(Msix {
            endpoint: self,
            layout,
        })
    }

    /// Does a change to the MSI-X table and then sends what it has unmasked.
    pub(crate) fn with_table<T>(
        &self,
        change: impl FnOnce(&mut Table, &mut ConfigSpace) -> T,
    ) -> Option<T> {
        let mut state = self.lock();
        let State { table, config, .. } = &mut *state;
        let result = table.as_mut().map(|table| change(table, config));
        self.settle(&mut state);
        result
    }

    /// Fills those bytes of `into`, which is a read of `bar` at `offset`, that
    /// lie in the MSI-X structures. Says whether there were any.
    pub fn read_msix(&self, bar: u8, offset: u64, into: &mut [u8]) -> bool {
        if !self.is_near_msix(bar, offset, into.len()) {
            return false;
        }
        let state = self.lock();
        let table = state.table.as_ref();
        table.is_some_and(|table| table.read(bar, offset, into))
    }

    /// Takes those bytes of a write to `bar` at `offset` that lie in the MSI-X
    /// structures. Says whether there were any.
    pub fn write_msix(&self, bar: u8, offset: u64, from: &[u8]) -> bool {
        if !self.is_near_msix(bar, offset, from.len()) {
            return false;
        }
        self.with_table(|table, _| table.write(bar, offset, from))
            .unwrap_or(false)
    }

    /// Whether an access reaches as high as the lower of the structures: asked
    /// without the lock, for the registers that stand below.
    fn is_near_msix(&self, bar: u8, offset: u64, length: usize) -> bool {
        let last = offset.saturating_add(u64::try_from(length).unwrap_or(u64::MAX));
        self.msix.is_some_and(|msix| {
            (bar == msix.table_bar && last > msix.table_offset.into())
                || (bar == msix.pba_bar && last > msix.pba_offset.into())
        })
    }

    /// Vectors that MSI offers; 0 without MSI.
    pub fn msi_vectors(&self) -> u16 {
        self.msi.map_or(0, |msi| msi.offered())
    }

    /// Whether MSI Enable is set.
    pub fn msi_enabled(&self) -> bool {
        let state = self.lock();
        self.msi.is_some_and(|msi| msi.enabled(&state.config))
    }

    /// Enables MSI with `vectors` vectors, whose messages are `first` with the
    /// vector's number in the low bits of the data. MSI-X is disabled.
    pub fn enable_msi(&self, vectors: u16, first: Message) -> Result<(), InterruptError> {
        let msi = self.msi.ok_or(InterruptError::Unsupported)?;
        check_vectors(vectors, msi.offered())?;
        let mut state = self.lock();
        state.enable_msix(false);
        msi.program(&mut state.config, first);
        msi.enable(&mut state.config, vectors);
        self.settle(&mut state);
        Ok(())
    }

    /// Sets MSI-X Enable; vectors keep their messages and masks. MSI is
    /// disabled.
    pub fn enable_msix(&self) -> Result<(), InterruptError> {
        let mut state = self.lock();
        if state.table.is_none() {
            return Err(InterruptError::Unsupported);
        }
        if let Some(msi) = self.msi {
            msi.enable(&mut state.config, 0);
        }
        state.enable_msix(true);
        self.settle(&mut state);
        Ok(())
    }

    /// Disables MSI and MSI-X, masks every MSI-X vector and forgets what is
    /// pending.
    pub fn disable_messages(&self) {
        let mut state = self.lock();
        if let Some(msi) = self.msi {
            msi.enable(&mut state.config, 0);
        }
        state.enable_msix(false);
        if let Some(table) = &mut state.table {
            table.reset();
        }
        state.forget_messages();
        self.settle(&mut state);
    }

    /// Sends the message of `vector` by MSI-X or MSI, whichever is enabled; it
    /// stays pending while masked. Without either it is lost, as is a vector
    /// that does not exist. Never touches INTx.
    pub fn raise(&self, vector: u16) {
        self.raise_locked(&mut self.lock(), vector);
    }

    /// [`raise`](Self::raise), if `life` has not ended.
    pub(crate) fn raise_in(&self, life: Life, vector: u16) {
        let mut state = self.lock();
        if self.life() == life {
            self.raise_locked(&mut state, vector);
        }
    }

    fn raise_locked(&self, state: &mut State, vector: u16) {
        if state.msix_enabled() {
            if let Some(table) = &mut state.table {
                table.set_pending(vector, true);
            }
        } else if let Some(msi) = self.msi.filter(|msi| msi.enabled(&state.config)) {
            // A function with fewer vectors than it wanted shares them.
            let taken = msi.allotted(&state.config).saturating_sub(1);
            if vector < msi.offered() {
                state.msi_pending |= 1_u32.wrapping_shl(u32::from(vector & taken));
            }
        }
        self.settle(state);
    }

    /// Asserts or deasserts the INTx pin. It reaches the bus above unless
    /// Interrupt Disable is set or messages are enabled; Status shows it in
    /// any case. Without a pin nothing happens.
    pub fn set_line(&self, line: Line) {
        self.set_line_locked(&mut self.lock(), line);
    }

    /// [`set_line`](Self::set_line), if `life` has not ended.
    pub(crate) fn set_line_in(&self, life: Life, line: Line) {
        let mut state = self.lock();
        if self.life() == life {
            self.set_line_locked(&mut state, line);
        }
    }

    fn set_line_locked(&self, state: &mut State, line: Line) {
        if state.config.get16(register::INTERRUPT_PIN) & 0xff == 0 || state.line == line {
            return;
        }
        state.line = line;
        self.settle(state);
    }

    /// Whether messages are enabled, so that the INTx pin is silent.
    pub fn messages_enabled(&self) -> bool {
        self.any_enabled(&self.lock())
    }

    fn any_enabled(&self, state: &State) -> bool {
        state.msix_enabled() || self.msi.is_some_and(|msi| msi.enabled(&state.config))
    }

    /// Makes the world agree with the registers: sends what may be sent, tells
    /// the line. Called after every change.
    fn settle(&self, state: &mut State) {
        let command = Command(state.config.get16(register::COMMAND));
        self.command.store(command.0, Ordering::SeqCst);
        if command.bus_master() && !state.held {
            self.send_msix(state);
            self.send_msi(state);
        }
        if let Some(msi) = self.msi {
            msi.show_pending(&mut state.config, state.msi_pending);
        }
        let (shown, told) = match state.line {
            Line::Asserted if command.intx_disabled() || self.any_enabled(state) => {
                (status::INTERRUPT, Line::Deasserted)
            }
            Line::Asserted => (status::INTERRUPT, Line::Asserted),
            Line::Deasserted => (0, Line::Deasserted),
        };
        let [low, _] = state.config.get16(register::STATUS).to_le_bytes();
        let low = low & !status::INTERRUPT | shown;
        state.config.set(register::STATUS, &[low]);
        if told != state.line_told && !state.held {
            state.line_told = told;
            self.interrupts.line(self.source, told);
        }
    }

    fn send_msix(&self, state: &mut State) {
        if !state.msix_enabled() || state.function_masked() {
            return;
        }
        let Some(table) = state.table.as_mut().filter(|table| table.any_pending()) else {
            return;
        };
        while let Some(vector) = table.deliverable() {
            table.set_pending(vector, false);
            if let Some(message) = table.message(vector) {
                self.interrupts.message(self.source, message);
            }
        }
    }

    fn send_msi(&self, state: &mut State) {
        let Some(msi) = self.msi.filter(|msi| msi.enabled(&state.config)) else {
            return;
        };
        let ready = state.msi_pending & !msi.masked(&state.config);
        for vector in (0..msi.offered()).filter(|vector| ready & 1 << vector != 0) {
            let message = msi.message(&state.config, vector);
            self.interrupts.message(self.source, message);
        }
        state.msi_pending &= !ready;
    }
}

impl State {
    fn msix_control(&self) -> u16 {
        let table = self.table.as_ref();
        table.map_or(0, |table| self.config.get16(table.at.saturating_add(2)))
    }

    fn msix_enabled(&self) -> bool {
        self.msix_control() & 1 << 15 != 0
    }

    fn function_masked(&self) -> bool {
        self.msix_control() & 1 << 14 != 0
    }

    fn enable_msix(&mut self, enabled: bool) {
        let control = self.msix_control() & !(1 << 15) | u16::from(enabled) << 15;
        if let Some(table) = &self.table {
            let at = table.at.saturating_add(2);
            self.config.set(at, &control.to_le_bytes());
        }
    }

    /// What was pending when messages were disabled belongs to nobody.
    fn forget_messages(&mut self) {
        self.msi_pending = 0;
        if let Some(table) = &mut self.table {
            table.clear_pending();
        }
    }
}

fn check_vectors(asked: u16, offered: u16) -> Result<(), InterruptError> {
    match (1..=offered).contains(&asked) {
        true => Ok(()),
        false => Err(InterruptError::Vectors { asked, offered }),
    }
}
