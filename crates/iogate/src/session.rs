//! A session put together: the machine file becomes models, the models stand
//! in an object model, and a checker watches both.

mod place;
mod scene;
mod sriov;

use std::ffi::OsString;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use iogate_checker::{Checker, Frame, Outside, StackId};
use iogate_devices::{MakeMemory, Properties, Slot, Value};
use iogate_dma::{Attachment, Gate, Interrupts, Iova, Source};
use iogate_host::{
    Actor, Device, GroupConfig, Host, HostConfig, Interpose, Iommu, MemlockMode, Node, Reserved,
    ReservedKind, Translation,
};
use iogate_inject::Injection;
use iogate_interrupt::{Delivery, Window};
use iogate_iommu_test::TestInterface;
use iogate_machine::{self as machine, Driver, Machine};
use iogate_memory::ClientMemory;
use iogate_pci::Function;
use iogate_supervisor::{Unmapping, User};
use iogate_sysfs::{HostPci, NodeKind, Settings};

use self::scene::Scene;
use crate::stacks::Stacks;
use crate::trace;
use crate::watched::{WatchedFunction, WatchedSpace};

/// Why a session cannot begin, in words for the user.
#[derive(Debug)]
pub(crate) struct Refusal(pub(crate) String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The number of `/dev/null`, which placeholders of nodes are: programs compare
/// it with what sysfs says.
const PLACEHOLDER: (u32, u32) = (1, 3);

/// The model of a device that another vfio-user server has.
pub(crate) const REMOTE: &str = "remote";

/// A machine in operation.
pub(crate) struct Session {
    host: Arc<Host>,
    pub(crate) checker: Arc<Checker>,
    memory: Arc<ClientMemory>,
    functions: Functions,
}

/// Every device function with its index in [`Machine::functions`], also those
/// that no VFIO driver holds.
type Functions = Vec<(usize, Arc<dyn Function>)>;

/// The models, as machine files know them.
fn models() -> Vec<machine::Model> {
    let property = |property: &iogate_devices::Property| machine::Property {
        name: property.name,
        kind: match property.kind {
            iogate_devices::Kind::Integer => machine::PropertyKind::Integer,
            iogate_devices::Kind::Bytes => machine::PropertyKind::Size,
            iogate_devices::Kind::Text => machine::PropertyKind::Text,
            iogate_devices::Kind::Bool => machine::PropertyKind::Boolean,
        },
    };
    let ours = iogate_devices::models().iter().map(|model| machine::Model {
        name: model.name,
        properties: model.properties.iter().map(property).collect(),
    });
    let remote = machine::Model {
        name: REMOTE,
        properties: vec![machine::Property {
            name: "socket",
            kind: machine::PropertyKind::Text,
        }],
    };
    ours.chain([remote]).collect()
}

/// What `--device help` prints.
pub(crate) fn models_help() -> String {
    let mut text = String::new();
    for model in iogate_devices::models() {
        text.push_str(&format!("{}: {}\n", model.name, model.about));
        for property in model.properties {
            text.push_str(&format!(
                "  {:<12} {:<9} {}\n",
                property.name,
                property.kind.name(),
                property.about
            ));
        }
    }
    text.push_str(&format!(
        "{REMOTE}: a device of another vfio-user server, for `iogate serve`\n"
    ));
    text.push_str("  socket       a text   the server's socket (needed)\n");
    text
}

/// Reads the machine of a file and of `--device` arguments.
pub(crate) fn load(file: Option<&Path>, devices: &[String]) -> Result<Machine, Refusal> {
    let name = file
        .map(|path| path.display().to_string())
        .unwrap_or_default();
    let bytes = match file {
        Some(path) => read_bounded(path).map_err(|error| Refusal(format!("{name}: {error}")))?,
        None => Vec::new(),
    };
    let text = file.map(|_| machine::Text {
        name: &name,
        bytes: &bytes,
    });
    Machine::load(text, devices, &models()).map_err(|error| Refusal(error.to_string()))
}

/// At most one byte more than a machine file may have, whatever the file is.
fn read_bounded(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let most = u64::try_from(machine::MAX_FILE_BYTES).unwrap_or(u64::MAX);
    std::fs::File::open(path)?
        .take(most.saturating_add(1))
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The failures that rules of `--inject` make on this machine.
pub(crate) fn injection(
    machine: &Machine,
    rules: &[String],
    seed: u64,
) -> Result<Option<Arc<Injection>>, Refusal> {
    if rules.is_empty() {
        return Ok(None);
    }
    let devices: Vec<_> = machine
        .devices()
        .map(|(_, entry, device)| (entry.source(), device.model.clone()))
        .collect();
    match Injection::new(rules, seed, &devices) {
        Ok(injection) => Ok(Some(Arc::new(injection))),
        Err(error) => Err(Refusal(error.to_string())),
    }
}

/// Builds the model of each device function, with its BARs placed as firmware
/// would.
pub(crate) fn build_devices(
    machine: &Machine,
    injection: Option<&Arc<Injection>>,
    memory: &Arc<ClientMemory>,
) -> Result<(Arc<Delivery>, Functions), Refusal> {
    let delivery = Arc::new(Delivery::new(message_window(machine)));
    let interrupts: Arc<dyn Interrupts> = match injection {
        Some(injection) => injection.interrupts(delivery.clone()),
        None => delivery.clone(),
    };
    let mut functions = Vec::new();
    for (index, entry, device) in machine.devices() {
        if device.model == REMOTE {
            let what = "a remote device serves guests: `iogate serve` takes it, `run` has none";
            return Err(Refusal(format!("{}: {what}", device.place)));
        }
        let properties: Properties = device
            .properties
            .iter()
            .map(|(name, value)| (name.to_owned(), property(value)))
            .collect();
        let slot = Slot {
            source: entry.source(),
            interrupts: interrupts.clone(),
            memory: Some(bar_memory(memory)),
            tap: Some(Arc::new(iogate_supervisor::open_tap)),
        };
        let build = match entry.placed.virtual_of {
            Some(_) => iogate_devices::build_virtual,
            None => iogate_devices::build,
        };
        let function = build(&device.model, &properties, slot)
            .map_err(|error| Refusal(format!("{}: {}: {error}", device.place, device.model)))?;
        if entry.placed.multifunction {
            function.endpoint().set_multifunction();
        }
        let function = watched(function);
        let function = match injection {
            Some(injection) => injection.function(function),
            None => function,
        };
        functions.push((index, function));
    }
    let is_physical = |index: &usize| {
        let entry = machine.functions().get(*index);
        entry.is_some_and(|entry| entry.placed.virtual_of.is_none())
    };
    let physical = functions.iter().filter(|(index, _)| is_physical(index));
    place::bars(physical.map(|(_, function)| function.endpoint()))
        .map_err(|error| Refusal(error.to_string()))?;
    Ok((delivery, functions))
}

/// The function, with its work told to the trace if somebody wants to hear of
/// it.
pub(crate) fn watched(function: Arc<dyn Function>) -> Arc<dyn Function> {
    match trace::wants("dma_work") {
        true => Arc::new(WatchedFunction(function)),
        false => function,
    }
}

/// Makes the plain memory of BARs where device files have it.
fn bar_memory(memory: &Arc<ClientMemory>) -> MakeMemory {
    let memory = Arc::clone(memory);
    Arc::new(move |bar, size| {
        let offset = iogate_uapi::memory_offset(bar.into());
        Ok(Arc::new(memory.make_device_memory(offset, size)?))
    })
}

/// The memory of a session's programs and devices.
pub(crate) fn client_memory() -> Result<Arc<ClientMemory>, Refusal> {
    let memory = ClientMemory::new();
    let refused = |error| Refusal(format!("cannot reserve address space: {error}"));
    memory.map(Arc::new).map_err(refused)
}

pub(crate) fn property(value: &machine::Value) -> Value {
    match value {
        machine::Value::Size(bytes) => Value::Bytes(*bytes),
        machine::Value::Integer(number) => Value::Integer(*number),
        machine::Value::Boolean(yes) => Value::Bool(*yes),
        machine::Value::Text(text) => Value::Text(text.clone()),
    }
}

/// Where the machine's functions write their messages: the first window that
/// a unit has, or that of x86.
fn message_window(machine: &Machine) -> Window {
    let mut reserved = machine.iommus().iter().flat_map(|iommu| &iommu.reserved);
    let window = reserved.find_map(|range| {
        let kind = match range.kind {
            machine::ReservedKind::Msi => iogate_interrupt::WindowKind::Fixed,
            machine::ReservedKind::SoftwareMsi => iogate_interrupt::WindowKind::Software,
            _ => return None,
        };
        Some(Window::new(kind, range.span))
    });
    window.unwrap_or(Window::X86)
}

/// Lets a function send PASIDs, if its unit takes any and nothing else is in
/// its group, so that none of the ports on the way lets its requests turn off;
/// says whether it sends any. Linux `pci_enable_pasid`.
fn enable_pasids(
    machine: &Machine,
    entry: &machine::FunctionEntry,
    function: &Arc<dyn Function>,
) -> bool {
    let machine::Translation::Unit(unit) = entry.translation else {
        return false;
    };
    let bits = machine.iommus().get(unit).map_or(0, |unit| unit.pasid_bits);
    let group = machine.group(entry.group);
    let is_alone = group.is_some_and(|group| group.members.len() == 1);
    is_alone && function.endpoint().enable_pasids(bits) != 0
}

/// What a device is attached by: with links before its address space, if
/// there is something to be told or to be injected.
pub(crate) fn attachment(injection: Option<&Arc<Injection>>) -> Attachment {
    let watched = trace::wants("dma_access");
    if !watched && injection.is_none() {
        return Attachment::new();
    }
    let injection = injection.cloned();
    Attachment::through(move |space| {
        let space = match watched {
            true => Arc::new(WatchedSpace::new(space)),
            false => space,
        };
        match &injection {
            Some(injection) => injection.space(space),
            None => space,
        }
    })
}

impl Session {
    /// Builds everything that a session of `machine` consists of.
    pub(crate) fn new(
        machine: &Machine,
        injection: Option<&Arc<Injection>>,
        with_stacks: bool,
    ) -> Result<Self, Refusal> {
        let stacks = with_stacks.then(Arc::<Stacks>::default);
        let memory = client_memory()?;
        let (delivery, functions) = build_devices(machine, injection, &memory)?;
        let iommus: Vec<Arc<Iommu>> = machine
            .iommus()
            .iter()
            .enumerate()
            .map(|(index, iommu)| Arc::new(unit(index, iommu)))
            .collect();
        let (mut devices, mut mapped) = (Vec::new(), Vec::new());
        for (index, function) in &functions {
            let Some(entry) = machine.functions().get(*index) else {
                continue;
            };
            let cdev = entry.device().and_then(|device| device.cdev);
            let translation = match entry.translation {
                machine::Translation::Unit(unit) => {
                    iommus.get(unit).cloned().map(Translation::Unit)
                }
                machine::Translation::Emulated => Some(Translation::Emulated),
                machine::Translation::None => Some(Translation::NoIommu),
            };
            let (Driver::Vfio, Some(cdev), Some(translation)) = (&entry.driver, cdev, translation)
            else {
                continue;
            };
            if entry.device().is_some_and(|d| d.mmio == machine::Mmio::Map) {
                mapped.push(devices.len());
            }
            let mut attachment = attachment(injection);
            if enable_pasids(machine, entry, function) {
                attachment = attachment.with_pasids();
            }
            devices.push(Arc::new(Device {
                index: devices.len(),
                source: entry.source(),
                name: entry.name(),
                group: entry.group,
                cdev,
                function: function.clone(),
                attachment: Arc::new(attachment),
                translation,
            }));
        }
        let names = machine
            .devices()
            .map(|(_, entry, device)| {
                let name = match &device.mediated {
                    Some(uuid) => format!("{} {uuid}", device.model),
                    None => device.model.clone(),
                };
                (entry.source(), name)
            })
            .collect();
        let checker = Arc::new(Checker::new(
            Box::new(World {
                models: names,
                stacks: stacks.clone(),
            }),
            Box::new(std::io::stderr()),
        ));
        let groups = machine
            .groups()
            .iter()
            .filter(|group| machine.has_node(group))
            .map(|group| GroupConfig {
                number: group.number,
                viable: machine.is_viable(group),
            })
            .collect();
        let config = HostConfig {
            groups,
            devices,
            dma_entry_limit: machine.dma_entry_limit(),
            memlock: match machine.memlock() {
                machine::Memlock::Off => MemlockMode::Off,
                machine::Memlock::Enforce => MemlockMode::Enforce,
            },
            memory: memory.clone(),
            gate: Arc::new(Gate::new()),
            delivery,
            observer: checker.clone(),
        };
        let interposer = match (injection, stacks) {
            (None, None) => None,
            (injection, stacks) => Some(Arc::new(Before {
                injection: injection.cloned(),
                stacks,
            }) as Arc<dyn Interpose>),
        };
        let host = Host::interposed(config, interposer);
        for device in mapped {
            let done = host.map_registers(device);
            done.map_err(|error| Refusal(error.reason.to_owned()))?;
        }
        sriov::add(machine, &host)?;
        Ok(Self {
            host,
            checker,
            memory,
            functions,
        })
    }
}

impl Session {
    /// Has iommufds answer the kernel's test interface.
    pub(crate) fn offer_test_interface(&self) {
        self.host.extend(Arc::new(TestInterface::new()));
    }

    /// What the supervisor needs of this session to run `program`.
    pub(crate) fn supervised(
        &self,
        machine: &Machine,
        host_pci: HostPci,
        program: Command,
    ) -> Result<iogate_supervisor::Session, Refusal> {
        let settings = Settings {
            node_number: PLACEHOLDER,
            cpus: std::thread::available_parallelism()
                .map_or(1, |cpus| u32::try_from(cpus.get()).unwrap_or(u32::MAX)),
        };
        let scene = Scene {
            machine: machine.clone(),
            settings,
            host: self.host.clone(),
            functions: self.functions.clone(),
        };
        let tree = scene.tree();
        let exe = std::env::current_exe()
            .map_err(|error| Refusal(format!("cannot find the iogate program: {error}")))?;
        Ok(iogate_supervisor::Session {
            host: self.host.clone(),
            memory: self.memory.clone(),
            faults: self.checker.clone(),
            tree,
            host_pci,
            nodes: self.nodes(machine),
            attributes: scene.attributes(),
            user: program.user,
            program: program.name,
            arguments: program.arguments,
            exe,
            unmapping: program.unmapping,
        })
    }

    /// The device nodes, and what each opens.
    fn nodes(&self, machine: &Machine) -> Vec<(String, Node)> {
        let device_at = |function: usize| {
            let source = machine.functions().get(function)?.source();
            let devices = &self.host.config().devices;
            devices.iter().position(|device| device.source == source)
        };
        iogate_sysfs::device_nodes(machine)
            .into_iter()
            .filter_map(|node| {
                let opens = match node.kind {
                    NodeKind::Container => Node::Container,
                    NodeKind::Iommufd => Node::Iommufd,
                    NodeKind::Group { number } => Node::Group(number),
                    NodeKind::Device { function } => Node::Device(device_at(function)?),
                };
                Some((node.path, opens))
            })
            .collect()
    }
}

/// A program to be run.
pub(crate) struct Command {
    pub(crate) name: OsString,
    pub(crate) arguments: Vec<OsString>,
    /// Who runs it, if not who runs us.
    pub(crate) user: Option<User>,
    pub(crate) unmapping: Unmapping,
}

fn unit(index: usize, iommu: &machine::Iommu) -> Iommu {
    let above = u32::from(64_u8.saturating_sub(iommu.iova_bits)).min(63);
    Iommu {
        index,
        aperture_last: Iova(u64::MAX >> above),
        page_sizes: iommu.page_sizes,
        reserved: iommu
            .reserved
            .iter()
            .map(|range| Reserved {
                span: range.span,
                kind: match range.kind {
                    machine::ReservedKind::Direct => ReservedKind::Direct,
                    machine::ReservedKind::DirectRelaxable => ReservedKind::DirectRelaxable,
                    machine::ReservedKind::Reserved => ReservedKind::Reserved,
                    machine::ReservedKind::Msi => ReservedKind::Msi,
                    machine::ReservedKind::SoftwareMsi => ReservedKind::SoftwareMsi,
                },
            })
            .collect(),
        coherent: iommu.coherent,
        tracks_dirty: iommu.dirty_tracking,
        pasid_bits: iommu.pasid_bits,
    }
}

/// What happens before a call is run.
struct Before {
    injection: Option<Arc<Injection>>,
    stacks: Option<Arc<Stacks>>,
}

impl Interpose for Before {
    fn call(&self, name: &'static str, device: Option<Source>, by: Actor) -> Option<i32> {
        if let (Some(stacks), Some(device), "region_write") = (&self.stacks, device, name) {
            stacks.writes(device, by);
        }
        self.injection.as_ref()?.call(name, device, by)
    }

    fn answers(&self, device: Source) -> bool {
        let injection = self.injection.as_ref();
        injection.is_none_or(|injection| injection.answers(device))
    }
}

/// What the checker asks when it writes for a person.
struct World {
    models: Vec<(Source, String)>,
    stacks: Option<Arc<Stacks>>,
}

impl Outside for World {
    fn model(&self, source: Source) -> Option<String> {
        let (_, model) = self.models.iter().find(|(at, _)| *at == source)?;
        Some(model.clone())
    }

    fn thread_name(&self, actor: Actor) -> Option<String> {
        let path = format!("/proc/{}/task/{}/comm", actor.process, actor.thread);
        let name = std::fs::read_to_string(path).ok()?;
        Some(name.trim_end_matches('\n').to_owned())
    }

    fn stack(&self, actor: Actor) -> Option<StackId> {
        self.stacks.as_ref()?.take(actor)
    }

    fn last_write(&self, source: Source) -> Option<StackId> {
        self.stacks.as_ref()?.last_write(source)
    }

    fn frames(&self, stack: StackId) -> Vec<Frame> {
        let stacks = self.stacks.as_ref();
        stacks.map_or_else(Vec::new, |stacks| stacks.frames(stack))
    }
}
