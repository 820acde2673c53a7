//! A machine with edu devices, as the command line would make one.

use std::ffi::OsString;
use std::sync::Arc;

use iogate_devices::{Properties, Slot};
use iogate_dma::{Attachment, Fault, FaultSink, Gate, Iova, Rights, Source, Span};
use iogate_host::{
    Actor, Device, GroupConfig, Host, HostConfig, Iommu, MemlockMode, Node, Observer, Reserved,
    ReservedKind, SpaceId, Translation, Via,
};
use iogate_interrupt::{Delivery, Window};
use iogate_machine::{Machine, Model};
use iogate_memory::ClientMemory;
use iogate_supervisor::{Session, Unmapping};
use iogate_sysfs::{FunctionFacts, HostPci, NodeKind, Presence, Settings, Tree, device_nodes};

/// Says on stderr what is refused.
struct Faults;

impl FaultSink for Faults {
    fn fault(&self, fault: &Fault) {
        eprintln!("FAULT {fault}");
    }
    fn answered(&self, _source: Source, _answer: &str) {}
}

struct Nobody;

impl Observer for Nobody {
    fn mapped(&self, _: SpaceId, _: Span, _: Rights, _: Via, _: Option<Actor>) {}
    fn unmapped(&self, _: SpaceId, _: Span, _: Via, _: Option<Actor>) {}
    fn revoked(&self, _: SpaceId, _: Span, _: Option<Actor>) {}
    fn attached(&self, _: Source, _: Option<SpaceId>) {}
}

pub fn session(devices: usize, program: &str, arguments: &[&str]) -> Session {
    let model = Model {
        name: "edu",
        properties: Vec::new(),
    };
    let edu = vec!["edu".to_owned(); devices];
    let machine = Machine::load(None, &edu, &[model]).unwrap();
    let delivery = Arc::new(Delivery::new(Window::X86));
    let iommu = Arc::new(Iommu {
        index: 0,
        aperture_last: Iova((1 << 48) - 1),
        page_sizes: 0x4020_1000,
        reserved: vec![Reserved {
            span: Span::with_length(Iova(0xfee0_0000), 1 << 20).unwrap(),
            kind: ReservedKind::Msi,
        }],
        coherent: true,
        tracks_dirty: false,
        pasid_bits: 0,
    });
    let mut list = Vec::new();
    let mut indices = Vec::new();
    for (function, entry, device) in machine.devices() {
        let slot = Slot {
            source: entry.source(),
            interrupts: delivery.clone(),
            memory: None,
            tap: None,
        };
        let built = iogate_devices::build("edu", &Properties::default(), slot).unwrap();
        let group = machine.groups().iter();
        let group = group
            .clone()
            .find(|group| group.members.contains(&function));
        indices.push(function);
        list.push(Arc::new(Device {
            index: list.len(),
            source: entry.source(),
            name: entry.source().to_string(),
            group: group.unwrap().number,
            cdev: device.cdev.unwrap(),
            function: built,
            attachment: Arc::new(Attachment::new()),
            translation: Translation::Unit(Arc::clone(&iommu)),
        }));
    }
    let facts = list.clone();
    let tree = Tree::new(&machine, Settings::default(), |entry| {
        let device = facts.iter().find(|device| device.source == entry.source());
        let mut config = vec![0; 256];
        device
            .unwrap()
            .function
            .endpoint()
            .read_config(0, &mut config);
        FunctionFacts {
            config,
            resources: Default::default(),
            irq: 0,
            numa_node: -1,
            presence: Presence::Present,
            sr_iov: None,
        }
    });
    let nodes = device_nodes(&machine).into_iter().map(|node| {
        let kind = match node.kind {
            NodeKind::Container => Node::Container,
            NodeKind::Iommufd => Node::Iommufd,
            NodeKind::Group { number } => Node::Group(number),
            NodeKind::Device { function } => {
                Node::Device(indices.iter().position(|index| *index == function).unwrap())
            }
        };
        (node.path, kind)
    });
    let memory = Arc::new(ClientMemory::new().unwrap());
    let groups = machine.groups().iter();
    let host = Host::new(HostConfig {
        groups: groups
            .map(|group| GroupConfig {
                number: group.number,
                viable: true,
            })
            .collect(),
        devices: list,
        dma_entry_limit: 65535,
        memlock: MemlockMode::Off,
        memory: memory.clone(),
        gate: Arc::new(Gate::new()),
        delivery,
        observer: Arc::new(Nobody),
    });
    Session {
        host,
        memory,
        faults: Arc::new(Faults),
        tree,
        host_pci: HostPci::Hidden,
        nodes: nodes.collect(),
        attributes: None,
        program: program.into(),
        arguments: arguments.iter().map(OsString::from).collect(),
        exe: std::env::current_exe().unwrap(),
        user: None,
        unmapping: Unmapping::Noticed,
    }
}
