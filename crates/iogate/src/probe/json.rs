//! A probe's findings for a program.

use serde_json::{Value, json};

use super::facts::{Facts, Function, Opened};
use super::text::{interrupt_name, region_name};

/// The version of this output: changed when a reader of the old one would be
/// misled.
const SCHEMA: u32 = 1;

pub(super) fn render(facts: &Facts) -> String {
    let groups: Vec<Value> = facts
        .groups
        .iter()
        .map(|(number, group)| {
            json!({
                "number": number,
                "type": group.kind,
                "members": group.members.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "reserved": group.reserved.iter().map(|(span, kind)| json!({
                    "first": span.first().to_string(),
                    "last": span.last().to_string(),
                    "type": kind,
                })).collect::<Vec<_>>(),
            })
        })
        .collect();
    let value = json!({
        "schema": SCHEMA,
        "inside_session": facts.inside_session,
        "groups": groups,
        "functions": facts.functions.iter().map(function).collect::<Vec<_>>(),
    });
    format!("{value:#}\n")
}

fn function(function: &Function) -> Value {
    json!({
        "address": function.source.to_string(),
        "kind": function.kind(),
        "vendor": format!("{:04x}", function.vendor),
        "device": format!("{:04x}", function.device),
        "class": format!("{:06x}", function.class),
        "driver": function.driver,
        "group": function.group,
        "cdev": function.cdev,
        "assignable": function.is_assignable(),
        "by_group": function.by_group.as_ref().map(opened),
        "by_cdev": function.by_cdev.as_ref().map(opened),
        "exercised": function.exercised.iter().map(|done| json!({
            "path": done.path,
            "what": done.what,
        })).collect::<Vec<_>>(),
        "problems": function.problems.iter().map(|problem| json!({
            "what": problem.what,
            "remedy": problem.remedy,
        })).collect::<Vec<_>>(),
    })
}

fn opened(opened: &Opened) -> Value {
    json!({
        "page_sizes": format!("{:#x}", opened.iommu.page_sizes),
        "mappings_left": opened.iommu.mappings_left,
        "resets": opened.info.map(|info| info.resets),
        "iova_ranges": opened.iommu.ranges.iter().map(|span| json!({
            "first": span.first().to_string(),
            "last": span.last().to_string(),
        })).collect::<Vec<_>>(),
        "regions": opened.regions.iter().map(|(index, region)| json!({
            "index": index,
            "name": region_name(*index),
            "size": region.size,
            "readable": region.readable,
            "writable": region.writable,
            "mappable": region.mappable,
        })).collect::<Vec<_>>(),
        "interrupts": opened.interrupts.iter().map(|(index, interrupt)| json!({
            "index": index,
            "name": interrupt_name(*index),
            "vectors": interrupt.count,
            "maskable": interrupt.maskable,
            "automasked": interrupt.automasked,
            "fixed_size": interrupt.fixed_size,
        })).collect::<Vec<_>>(),
        "capabilities": opened.capabilities,
    })
}
