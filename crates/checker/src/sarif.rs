//! The report in SARIF 2.1.0 (OASIS Static Analysis Results Interchange
//! Format), which code hosts and editors show beside the source.

use iogate_dma::FaultReason;
use serde_json::{Value, json};

/// The rule for a reason of refusal: its id, what it says, what to do.
struct Rule {
    id: &'static str,
    reason: Option<FaultReason>,
    text: &'static str,
    help: &'static str,
}

const LEAK: &str = "dma/never-unmapped";

const RULES: [Rule; 8] = [
    Rule {
        id: "dma/not-mapped",
        reason: Some(FaultReason::NotMapped),
        text: "A device accessed an address that is not mapped",
        help: "Unmap a buffer only when the device is done with it, and give the device only addresses that are mapped.",
    },
    Rule {
        id: "dma/permission",
        reason: Some(FaultReason::Permission),
        text: "A device's access is against the mapping's permission",
        help: "Map what the device writes as writable, and what it reads as readable.",
    },
    Rule {
        id: "dma/memory-gone",
        reason: Some(FaultReason::Revoked),
        text: "The memory behind a mapping is gone",
        help: "Unmap a buffer from the IOMMU before its memory is given back.",
    },
    Rule {
        id: "dma/reserved",
        reason: Some(FaultReason::Reserved),
        text: "A device accessed a reserved address",
        help: "Take addresses from the ranges that the IOMMU reports as usable.",
    },
    Rule {
        id: "dma/no-address-space",
        reason: Some(FaultReason::Blocked),
        text: "A device that is attached to no address space made an access",
        help: "Put the group into a container with an IOMMU, or attach the device to an IOAS, before the device is started; stop it before that ends.",
    },
    Rule {
        id: "dma/no-iommu",
        reason: Some(FaultReason::Physical),
        text: "A device without IOMMU accessed a physical address",
        help: "Give the device an IOMMU: a session knows what programs map, not where the kernel keeps it.",
    },
    Rule {
        id: "dma/no-bus-master",
        reason: Some(FaultReason::NotMaster),
        text: "A device whose bus mastering is disabled was told to make an access",
        help: "Set Bus Master Enable: bit 2 of the command register, config offset 0x04.",
    },
    Rule {
        id: LEAK,
        reason: None,
        text: "A mapping was never unmapped",
        help: "Unmap every mapping before the container, the IOAS or the program goes.",
    },
];

/// The report, given as the object of `docs/report.md`, in SARIF.
pub(crate) fn of(report: &Value) -> Value {
    let rules: Vec<_> = RULES
        .iter()
        .map(|rule| {
            json!({
                "id": rule.id,
                "shortDescription": { "text": rule.text },
                "help": { "text": rule.help },
            })
        })
        .collect();
    let list = |key: &str, of: &str| {
        let list = report.get(key).and_then(|value| value.get(of)?.as_array());
        list.cloned().unwrap_or_default()
    };
    let causes = list("faults", "causes");
    let leaks = list("leaks", "details");
    let results: Vec<_> = causes
        .iter()
        .map(of_cause)
        .chain(leaks.iter().map(of_leak))
        .collect();
    json!({
        "$schema": "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": {
                "name": "iogate",
                "version": env!("CARGO_PKG_VERSION"),
                "rules": rules,
            }},
            "invocations": [invocation(report)],
            "results": results,
        }],
    })
}

fn invocation(report: &Value) -> Value {
    let status = report.get("status");
    let of = |key: &str| status.and_then(|status| status.get(key)?.as_i64());
    let words = report.get("program").and_then(Value::as_array);
    let words = words.into_iter().flatten().filter_map(Value::as_str);
    let mut value = json!({
        "executionSuccessful": status.is_none_or(|status| status.get("broken").is_none()),
        "arguments": words.clone().skip(1).collect::<Vec<_>>(),
        "commandLine": words.collect::<Vec<_>>().join(" "),
    });
    if let Some(object) = value.as_object_mut() {
        if let Some(code) = of("exited") {
            object.insert("exitCode".to_owned(), json!(code));
        }
        if let Some(number) = of("signalled") {
            object.insert("exitSignalNumber".to_owned(), json!(number));
        }
        if let Some(process) = report.get("process").filter(|process| process.is_u64()) {
            object.insert("processId".to_owned(), process.clone());
        }
    }
    value
}

fn of_cause(cause: &Value) -> Value {
    let reason = string(cause, "reason");
    let rule = RULES.iter().position(|rule| {
        let known = rule.reason.map(|reason| reason.to_string());
        known.as_deref() == Some(reason)
    });
    let mut text = string(cause, "text").to_owned();
    let mapping = cause.get("mapping").filter(|mapping| mapping.is_object());
    if let Some(mapping) = mapping {
        text.push_str(match string(cause, "history") {
            "never" => "; the nearest mapping is ",
            "unmapped" => "; there was a mapping of ",
            _ => "; the mapping is ",
        });
        text.push_str(&range(mapping));
    }
    let stacks = [
        ("the register access", cause.get("stack")),
        (
            "mapped",
            mapping.and_then(|m| m.get("mapped")?.get("stack")),
        ),
        (
            "unmapped",
            cause.get("unmapped").and_then(|u| u.get("stack")),
        ),
    ];
    let device = json!({
        "logicalLocations": [{ "fullyQualifiedName": string(cause, "device"), "kind": "resource" }],
    });
    let mut result = result(rule, "error", &text, &stacks, device);
    if let Some(object) = result.as_object_mut() {
        let times = cause.get("times").cloned().unwrap_or(json!(1));
        object.insert("occurrenceCount".to_owned(), times);
        object.insert("properties".to_owned(), cause.clone());
    }
    result
}

fn of_leak(leak: &Value) -> Value {
    let rule = RULES.iter().position(|rule| rule.id == LEAK);
    let text = format!("the mapping {} was never unmapped", range(leak));
    let stacks = [("mapped", leak.get("mapped").and_then(|m| m.get("stack")))];
    let space = leak
        .get("space")
        .and_then(Value::as_u64)
        .unwrap_or_default();
    let place = json!({
        "logicalLocations": [{ "fullyQualifiedName": format!("space {space}"), "kind": "resource" }],
    });
    let mut result = result(rule, "warning", &text, &stacks, place);
    if let Some(object) = result.as_object_mut() {
        object.insert("properties".to_owned(), leak.clone());
    }
    result
}

/// One result. Its place in the source is the first frame, over the stacks in
/// their order, whose line is known.
fn result(
    rule: Option<usize>,
    level: &str,
    text: &str,
    stacks: &[(&str, Option<&Value>)],
    mut location: Value,
) -> Value {
    let known: Vec<_> = stacks
        .iter()
        .filter_map(|(what, stack)| Some((*what, stack.and_then(|s| s.get("frames"))?.as_array()?)))
        .collect();
    let mut frames = known.iter().flat_map(|(_, frames)| frames.iter());
    if let Some(place) = frames.find_map(physical)
        && let Some(object) = location.as_object_mut()
    {
        object.insert("physicalLocation".to_owned(), place);
    }
    let mut result = json!({
        "level": level,
        "message": { "text": text },
        "locations": [location],
    });
    if let Some(object) = result.as_object_mut() {
        if let Some(index) = rule {
            object.insert("ruleIndex".to_owned(), json!(index));
            let id = RULES.get(index).map(|rule| rule.id);
            object.insert("ruleId".to_owned(), json!(id));
        }
        if !known.is_empty() {
            let stacks: Vec<_> = known
                .iter()
                .map(|(what, frames)| stack(what, frames))
                .collect();
            object.insert("stacks".to_owned(), json!(stacks));
        }
    }
    result
}

fn stack(what: &str, frames: &[Value]) -> Value {
    let frames: Vec<_> = frames
        .iter()
        .map(|frame| {
            let mut location = json!({
                "logicalLocations": [{
                    "fullyQualifiedName": match string(frame, "function") {
                        "" => string(frame, "address"),
                        function => function,
                    },
                    "kind": "function",
                }],
            });
            if let Some(place) = physical(frame)
                && let Some(object) = location.as_object_mut()
            {
                object.insert("physicalLocation".to_owned(), place);
            }
            json!({ "location": location, "module": string(frame, "module") })
        })
        .collect();
    json!({ "message": { "text": what }, "frames": frames })
}

/// The file and the line of a frame, if both are known.
fn physical(frame: &Value) -> Option<Value> {
    let file = frame.get("file")?.as_str()?;
    let line = frame.get("line")?.as_u64().filter(|line| *line > 0)?;
    let uri = match file.starts_with('/') {
        true => format!("file://{}", escaped(file)),
        false => escaped(file),
    };
    Some(json!({
        "artifactLocation": { "uri": uri },
        "region": { "startLine": line },
    }))
}

/// A path as a part of a URI. RFC 3986 section 2.
fn escaped(path: &str) -> String {
    let mut text = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                text.push(char::from(byte));
            }
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

fn range(mapping: &Value) -> String {
    let of = |key| string(mapping, key);
    format!("{}-{} {}", of("first"), of("last"), of("rights"))
}

fn string<'v>(value: &'v Value, key: &str) -> &'v str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_becomes_a_part_of_a_uri() {
        assert_eq!(escaped("/a b/ü.c"), "/a%20b/%C3%BC.c");
    }

    #[test]
    fn the_place_is_the_first_line_that_is_known() {
        let frames = json!([
            { "function": "ioctl", "module": "libc.so.6", "address": "0x1" },
            { "function": "start", "file": "driver.c", "line": 12 },
            { "function": "main", "file": "/src/main.c", "line": 3 },
        ]);
        let stack = json!({ "frames": frames });
        let value = result(
            Some(0),
            "error",
            "x",
            &[("mapped", Some(&stack))],
            json!({}),
        );
        let place = &value["locations"][0]["physicalLocation"];
        assert_eq!(place["artifactLocation"]["uri"], "driver.c");
        assert_eq!(place["region"]["startLine"], 12);
        assert_eq!(value["stacks"][0]["frames"].as_array().unwrap().len(), 3);
        assert_eq!(value["ruleId"], "dma/not-mapped");
    }
}
