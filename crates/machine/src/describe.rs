//! The machine in words: what `iogate machine` prints.
use crate::model::{
    DeviceEntry, FunctionEntry, FunctionKind, Group, Iommu, IommuKind, Machine, Memlock, Mmio,
    Translation, Value,
};
use crate::quantity::display_size;
use crate::tables::bridge_kind_name;
use std::fmt::{self, Write};

impl Machine {
    /// IOMMUs with their reserved windows, the tree of bridges and devices with
    /// addresses, groups and requester ids, and the groups that have a node.
    /// Ends with a line feed.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = self.write(&mut text);
        text
    }

    fn write(&self, out: &mut String) -> fmt::Result {
        let memlock = match self.memlock {
            Memlock::Off => "not counted",
            Memlock::Enforce => "counted against RLIMIT_MEMLOCK",
        };
        writeln!(
            out,
            "pinned memory {memlock}, {} mappings per container",
            self.dma_entry_limit
        )?;
        for iommu in &self.iommus {
            write_iommu(out, iommu)?;
        }
        let mut segment = None;
        for (index, function) in self.functions.iter().enumerate() {
            if function.translation == Translation::Emulated {
                continue;
            }
            if function.placed.parent.is_none() {
                if segment.replace(function.source().segment) != Some(function.source().segment) {
                    writeln!(out, "\nsegment {:04x}", function.source().segment)?;
                }
                self.write_tree(out, index, 1)?;
            }
        }
        self.write_mediated(out)?;
        writeln!(out)?;
        for group in &self.groups {
            self.write_group(out, group)?;
        }
        Ok(())
    }

    fn write_tree(&self, out: &mut String, index: usize, depth: usize) -> fmt::Result {
        let Some(function) = self.functions.get(index) else {
            return Ok(());
        };
        let indent = depth.saturating_mul(2);
        write!(out, "{:indent$}{} ", "", function.source())?;
        match &function.kind {
            FunctionKind::Bridge(bridge) => {
                write!(out, "{}", bridge_kind_name(bridge.kind))?;
                if let Some(name) = &bridge.name {
                    write!(out, " {name}")?;
                }
                if let Some(buses) = function.placed.buses {
                    write!(
                        out,
                        ", buses {:02x}-{:02x}",
                        buses.secondary, buses.subordinate
                    )?;
                }
            }
            FunctionKind::Device(device) if function.placed.virtual_of.is_some() => {
                let number = function.placed.virtual_of.map_or(0, |of| of.number);
                write!(out, "{}, virtual function {number}", device.model)?;
            }
            FunctionKind::Device(device) => write_device(out, device)?,
        }
        if function.placed.acs {
            write!(out, ", ACS")?;
        }
        write!(out, ", group {}", function.group)?;
        if let [_, others @ ..] = function.aliases.as_slice() {
            for alias in others {
                write!(out, ", also as {alias}")?;
            }
        }
        match function.translation {
            Translation::Unit(unit) if self.iommus.len() > 1 => {
                let name = self.iommus.get(unit).map_or("", |i| &i.name);
                write!(out, ", {name}")?;
            }
            Translation::None => write!(out, ", no IOMMU")?,
            _ => {}
        }
        writeln!(out)?;
        for (child, below) in self.functions.iter().enumerate() {
            if below.placed.parent == Some(index) {
                self.write_tree(out, child, depth.saturating_add(1))?;
            }
        }
        Ok(())
    }

    fn write_mediated(&self, out: &mut String) -> fmt::Result {
        let mut is_first = true;
        for (_, function, device) in self.devices() {
            let Some(uuid) = &device.mediated else {
                continue;
            };
            if std::mem::take(&mut is_first) {
                writeln!(out, "\nmediated devices")?;
            }
            write!(out, "  {uuid} ")?;
            write_device(out, device)?;
            writeln!(out, ", group {}", function.group)?;
        }
        Ok(())
    }

    fn write_group(&self, out: &mut String, group: &Group) -> fmt::Result {
        write!(out, "group {}:", group.number)?;
        for (nth, member) in self.members(group).enumerate() {
            write!(out, "{} {member}", if nth == 0 { "" } else { "," })?;
        }
        writeln!(out)?;
        if !self.has_node(group) {
            return Ok(());
        }
        let cdevs = self
            .members(group)
            .filter_map(|member| member.device()?.cdev);
        write!(out, "  /dev/vfio/{}", self.node_name(group))?;
        let has_cdevs = group.translation != Translation::None;
        for cdev in cdevs.filter(|_| has_cdevs) {
            write!(out, ", /dev/vfio/devices/vfio{cdev}")?;
        }
        writeln!(out)?;
        let in_the_way = |f: &&FunctionEntry| !f.driver.leaves_dma_alone();
        for member in self.members(group).filter(in_the_way) {
            let driver = member.driver.name().unwrap_or("");
            writeln!(out, "  not viable: {member} is bound to {driver}")?;
        }
        Ok(())
    }
}

fn write_device(out: &mut String, device: &DeviceEntry) -> fmt::Result {
    write!(out, "{}", device.model)?;
    for (name, value) in device.properties.iter() {
        match value {
            Value::Size(size) => write!(out, " {name}={}", display_size(*size))?,
            Value::Integer(number) => write!(out, " {name}={number}")?,
            Value::Boolean(yes) => write!(out, " {name}={yes}")?,
            Value::Text(text) => write!(out, " {name}={text}")?,
        }
    }
    if device.ats {
        write!(out, " ats=true")?;
    }
    match device.mmio {
        Mmio::Map => write!(out, " mmio=map"),
        Mmio::Trap => Ok(()),
    }
}

fn write_iommu(out: &mut String, iommu: &Iommu) -> fmt::Result {
    write!(
        out,
        "{}: {}-bit IOVA, pages of",
        iommu.name, iommu.iova_bits
    )?;
    let sizes = (0..64u32).filter_map(|bit| 1u64.checked_shl(bit));
    for (nth, size) in sizes
        .filter(|size| iommu.page_sizes & size != 0)
        .enumerate()
    {
        let comma = if nth == 0 { "" } else { "," };
        write!(out, "{comma} {}", display_size(size))?;
    }
    for (has, word) in [
        (iommu.coherent, ", coherent"),
        (iommu.dirty_tracking, ", dirty tracking"),
    ] {
        write!(out, "{}", if has { word } else { "" })?;
    }
    if iommu.pasid_bits != 0 {
        write!(out, ", {}-bit PASIDs", iommu.pasid_bits)?;
    }
    if let IommuKind::Vtd(vtd) = &iommu.kind {
        let mode = if vtd.scalable { "scalable" } else { "legacy" };
        write!(out, ", VT-d in {mode} mode")?;
        for (has, word) in [
            (vtd.first_stage == Some(false), ", no first stage"),
            (vtd.nested == Some(false), ", not nested"),
            (vtd.ats, ", ATS"),
            (vtd.page_requests, ", page requests"),
            (!vtd.caching_mode, ", no caching mode"),
        ] {
            write!(out, "{}", if has { word } else { "" })?;
        }
    }
    writeln!(out)?;
    for reserved in &iommu.reserved {
        writeln!(out, "  {} {}", reserved.span, reserved.kind.name())?;
    }
    Ok(())
}
