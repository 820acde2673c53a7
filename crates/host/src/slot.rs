//! One device's side of its open files: what they share, and what opening the
//! first and closing the last does. Linux `drivers/vfio/pci/vfio_pci_core.c`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use iogate_dma::WriteLog;
use iogate_interrupt::Signal;
use iogate_pci::{BarSpace, Command, Endpoint, ResetKind, config};

use crate::config_region::{Capabilities, VirtualMsi};
use crate::ioeventfd::IoEventfds;
use crate::irqs::Irqs;
use crate::migration::Migration;
use crate::sriov::Role;
use crate::{Device, Error, Host, Retired};

/// One device and the lock of its state. Registers in BARs are accessed
/// without the lock.
pub(crate) struct Slot {
    pub(crate) device: Arc<Device>,
    pub(crate) capabilities: Capabilities,
    /// The BAR registers as the machine set them.
    bars: [u8; 24],
    /// Whether the function is in a state of low power, where its memory does
    /// not answer.
    pub(crate) asleep: AtomicBool,
    /// Whether a program may map registers in memory, because whoever runs it
    /// executes its accesses.
    pub(crate) maps_registers: AtomicBool,
    pub(crate) role: Role,
    /// The physical function, for a virtual one.
    pub(crate) owner: OnceLock<usize>,
    state: Mutex<DeviceState>,
}

/// What the open files of a device share.
#[derive(Default)]
pub(crate) struct DeviceState {
    /// Open files that give access.
    pub(crate) opens: u32,
    pub(crate) irqs: Irqs,
    pub(crate) ioeventfds: IoEventfds,
    pub(crate) msi: VirtualMsi,
    /// Whether the client asked for low power, and whom to wake.
    pub(crate) low_power: Option<LowPower>,
    pub(crate) migration: Migration,
    /// Where the device's writes are logged.
    pub(crate) logging: Option<Arc<WriteLog>>,
}

/// VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY is in force.
pub(crate) struct LowPower {
    /// Signalled by the next access, which also ends it.
    pub(crate) wakeup: Option<Arc<dyn Signal>>,
}

impl Slot {
    pub(crate) fn new(device: &Arc<Device>) -> Self {
        let endpoint = device.function.endpoint();
        let mut bars = [0; 24];
        endpoint.read_config(config::register::BAR0.into(), &mut bars);
        Self {
            device: Arc::clone(device),
            capabilities: Capabilities::find(endpoint),
            bars,
            asleep: AtomicBool::new(false),
            maps_registers: AtomicBool::new(false),
            role: Role::default(),
            owner: OnceLock::new(),
            state: Mutex::default(),
        }
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        self.device.function.endpoint()
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, DeviceState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn write_command(&self, command: u16) {
        // The command register starts no reset.
        let _ = self
            .endpoint()
            .write_config(config::register::COMMAND.into(), &command.to_le_bytes());
    }

    /// Wakes the function: it answers from now on.
    pub(crate) fn power_on(&self) {
        let state = self.lock();
        let power = config::capability::POWER_MANAGEMENT;
        if let Some(at) = self.endpoint().capability(power) {
            let control = u64::from(at).saturating_add(4);
            let _ = self.endpoint().write_config(control, &[0]);
        }
        self.settle_power(&state);
    }

    /// Power-on state, and the BARs where the machine put them.
    fn reset(&self) {
        self.endpoint().reset();
        self.device.function.reset(ResetKind::FunctionLevel);
        let _ = self
            .endpoint()
            .write_config(config::register::BAR0.into(), &self.bars);
    }

    /// What enabling the device leaves in its Command register: its BARs
    /// answer, it is no bus master. `pci_enable_device`.
    fn enabled(&self) -> u16 {
        let bars = self.endpoint().bars();
        bars.fold(0, |command, bar| {
            command
                | match bar.space {
                    BarSpace::Io => Command::IO,
                    BarSpace::Memory => Command::MEMORY,
                }
        })
    }
}

impl Host {
    /// One more file gives access to the device; the first resets and enables
    /// it. `vfio_df_open`, `vfio_pci_core_enable`.
    pub(crate) fn open_device(&self, index: usize) -> Result<(), Error> {
        let slot = self.slot(index)?;
        let mut state = slot.lock();
        if state.opens == 0 {
            slot.reset();
            self.reset_virtual_functions(slot);
            slot.write_command(slot.enabled());
            slot.asleep.store(false, Ordering::SeqCst);
            state.msi = VirtualMsi::new(slot.endpoint(), &slot.capabilities);
        }
        state.opens = state.opens.saturating_add(1);
        Ok(())
    }

    /// One file less; the last silences and resets the device. `vfio_df_close`,
    /// `vfio_pci_core_disable`.
    pub(crate) fn shut_device(&self, index: usize, retired: &mut Retired) {
        let Ok(slot) = self.slot(index) else {
            return;
        };
        let mut state = slot.lock();
        state.opens = state.opens.saturating_sub(1);
        if state.opens > 0 {
            return;
        }
        slot.write_command(0);
        slot.close_migration(&mut state);
        let DeviceState {
            irqs, ioeventfds, ..
        } = &mut *state;
        irqs.disable_all(slot, &self.config.delivery, retired);
        ioeventfds.clear(retired);
        state.low_power = None;
        slot.reset();
        self.reset_virtual_functions(slot);
        slot.asleep.store(false, Ordering::SeqCst);
        retired.grace = Some(self.config.gate.grace());
    }
}
