//! The grammar of rules, with errors that show the place.
//!
//! ```text
//! rules  = rule *("," rule)
//! rule   = what ":" effect *("@" which)
//! which  = number | number "+" | percent "%" | model | address
//! ```

use std::fmt;

use iogate_dma::Source;
use iogate_uapi::{Errno, call_names};

use crate::rule::{Rule, What, When};

/// Rules that one session may have.
const MOST_RULES: usize = 256;

/// Calls that have a common name.
const KINDS: [(&str, &[&str]); 2] = [
    (
        "map",
        &[
            "ioctl_map_dma",
            "ioctl_ioas_map",
            "ioctl_ioas_map_file",
            "ioctl_ioas_copy",
        ],
    ),
    ("unmap", &["ioctl_unmap_dma", "ioctl_ioas_unmap"]),
];

/// A text that is no list of rules, and where it goes wrong.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub struct GrammarError {
    text: String,
    /// First byte of the part that is wrong, and its bytes.
    at: usize,
    length: usize,
    message: String,
}

impl fmt::Display for GrammarError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let before = self.text.get(..self.at).unwrap_or_default();
        let column = before.chars().count();
        let part = self.text.get(self.at..self.at.saturating_add(self.length));
        let marks = part.map_or(0, |part| part.chars().count()).max(1);
        writeln!(
            f,
            "--inject, column {}: {}",
            column.saturating_add(1),
            self.message
        )?;
        writeln!(f, "  {}", self.text)?;
        write!(f, "  {:column$}{}", "", "^".repeat(marks))
    }
}

/// A part of the text, with where it stands.
#[derive(Clone, Copy)]
struct Part<'t> {
    whole: &'t str,
    at: usize,
    text: &'t str,
}

impl<'t> Part<'t> {
    fn split(self, separator: char) -> impl Iterator<Item = Self> {
        let mut next = self.at;
        self.text.split(separator).map(move |text| {
            let at = next;
            next = at
                .saturating_add(text.len())
                .saturating_add(separator.len_utf8());
            Self { at, text, ..self }
        })
    }

    fn error(self, message: impl Into<String>) -> GrammarError {
        GrammarError {
            text: self.whole.to_owned(),
            at: self.at,
            length: self.text.len(),
            message: message.into(),
        }
    }
}

/// Reads a list of rules, for a machine with these devices and their models.
pub(crate) fn parse(
    text: &str,
    devices: &[(Source, String)],
    rules: &mut Vec<Rule>,
) -> Result<(), GrammarError> {
    let whole = Part {
        whole: text,
        at: 0,
        text,
    };
    for part in whole.split(',') {
        if rules.len() >= MOST_RULES {
            return Err(part.error(format!("more than {MOST_RULES} rules")));
        }
        rules.push(rule(part, devices)?);
    }
    Ok(())
}

fn rule(part: Part<'_>, devices: &[(Source, String)]) -> Result<Rule, GrammarError> {
    let Some(colon) = part.text.find(':') else {
        return Err(part.error("a rule is what:effect, for example map:ENOMEM@3"));
    };
    let (subject, rest) = part.text.split_at(colon);
    let subject = Part {
        text: subject,
        ..part
    };
    let rest = Part {
        at: part.at.saturating_add(colon).saturating_add(1),
        text: rest.get(1..).unwrap_or_default(),
        ..part
    };
    let mut parts = rest.split('@');
    let effect = parts.next().unwrap_or(rest);
    let what = what(subject, effect)?;
    let (mut when, mut chosen) = (None, None);
    for which in parts {
        let of_a_device = match self::when(which)? {
            Some(found) => {
                if when.replace(found).is_some() {
                    return Err(which.error("a rule has one number or percentage"));
                }
                continue;
            }
            None => named(which, devices)?,
        };
        if let What::Calls(names, _) = &what
            && !names.iter().any(|name| is_on_device(name))
        {
            return Err(which.error(format!(
                "\"{}\" is called on no device: leave the device out",
                subject.text
            )));
        }
        if chosen.replace(of_a_device).is_some() {
            return Err(which.error("a rule has one device or model"));
        }
    }
    Ok(Rule {
        text: part.text.to_owned(),
        what,
        when: when.unwrap_or(When::From(1)),
        devices: chosen,
    })
}

fn is_on_device(name: &str) -> bool {
    name.starts_with("ioctl_device_") || name.starts_with("region_")
}

fn what(subject: Part<'_>, effect: Part<'_>) -> Result<What, GrammarError> {
    let only = |word: &str, what| match effect.text == word {
        true => Ok(what),
        false => Err(effect.error(format!("what {} can do is \"{word}\"", subject.text))),
    };
    match subject.text {
        "dma" => return only("fault", What::Dma),
        "irq" => return only("drop", What::Interrupt),
        "device" => return only("vanish", What::Vanish),
        _ => {}
    }
    let mut kinds = KINDS.iter();
    let kind = kinds.find_map(|(name, calls)| (*name == subject.text).then(|| calls.to_vec()));
    let calls = kind.unwrap_or_else(|| {
        let is_meant = |name: &&str| {
            let short = name.strip_prefix("ioctl_");
            let all = subject.text == "ioctl" && short.is_some();
            all || *name == subject.text || short == Some(subject.text)
        };
        call_names().filter(is_meant).collect()
    });
    if calls.is_empty() {
        return Err(subject.error(format!(
            "no such call or event: \"{}\"; --inject help lists them",
            subject.text
        )));
    }
    let mut errnos = Errno::NAMED.iter();
    match errnos.find(|errno| errno.name() == effect.text) {
        Some(errno) => Ok(What::Calls(calls, *errno)),
        None => Err(effect.error(format!(
            "no such errno: \"{}\"; --inject help lists them",
            effect.text
        ))),
    }
}

/// A number, a number and all after it, or a percentage; `None` if the part
/// is something else.
fn when(part: Part<'_>) -> Result<Option<When>, GrammarError> {
    let text = part.text;
    // An address may begin with a digit too.
    let is_other = text.contains(':') || !text.starts_with(|c: char| c.is_ascii_digit());
    if is_other {
        return Ok(None);
    }
    if let Some(percent) = text.strip_suffix('%') {
        let chance = millionths(percent).filter(|chance| (1..=1_000_000).contains(chance));
        return match chance {
            Some(chance) => Ok(Some(When::Chance(chance))),
            None => Err(part.error("a percentage is 0.0001% to 100%")),
        };
    }
    let (digits, form): (_, fn(u64) -> When) = match text.strip_suffix('+') {
        Some(digits) => (digits, When::From),
        None => (text, When::Nth),
    };
    match digits.parse() {
        Ok(number) if number > 0 => Ok(Some(form(number))),
        _ => Err(part.error("a number counts from 1")),
    }
}

/// A percentage of at most four decimals, in millionths.
fn millionths(percent: &str) -> Option<u32> {
    let (whole, decimals) = percent.split_once('.').unwrap_or((percent, "0"));
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !is_number(whole) || !is_number(decimals) || decimals.len() > 4 {
        return None;
    }
    let decimals: u32 = format!("{decimals:0<4}").parse().ok()?;
    let whole: u32 = whole.parse().ok()?;
    whole.checked_mul(10_000)?.checked_add(decimals)
}

fn named(part: Part<'_>, devices: &[(Source, String)]) -> Result<Vec<Source>, GrammarError> {
    let at = part.text.parse::<Source>().ok();
    let meant = |(source, model): &&(Source, String)| Some(*source) == at || model == part.text;
    let found: Vec<_> = devices
        .iter()
        .filter(meant)
        .map(|(source, _)| *source)
        .collect();
    if !found.is_empty() {
        return Ok(found);
    }
    let all: Vec<_> = devices
        .iter()
        .map(|(source, model)| format!("{model} {source}"))
        .collect();
    Err(part.error(format!(
        "neither a number nor a device of this machine, which has {}",
        all.join(", ")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn devices() -> Vec<(Source, String)> {
        vec![
            ("01:00.0".parse().unwrap(), "edu".to_owned()),
            ("02:00.0".parse().unwrap(), "nvme".to_owned()),
            ("03:00.0".parse().unwrap(), "nvme".to_owned()),
        ]
    }

    fn rules(text: &str) -> Result<Vec<Rule>, String> {
        let mut rules = Vec::new();
        parse(text, &devices(), &mut rules).map_err(|error| error.to_string())?;
        Ok(rules)
    }

    #[test]
    fn a_list_of_rules_is_read() {
        let rules = rules("map:ENOMEM@3,dma:fault@nvme@10+,irq:drop@02:00.0@0.5%").unwrap();
        let [map, dma, irq] = &rules[..] else {
            panic!("{rules:?}");
        };
        assert!(matches!(&map.what, What::Calls(calls, Errno::ENOMEM)
            if calls.contains(&"ioctl_map_dma") && calls.contains(&"ioctl_ioas_map")));
        assert_eq!((map.when, &map.devices), (When::Nth(3), &None));
        assert_eq!((&dma.what, dma.when), (&What::Dma, When::From(10)));
        assert_eq!(dma.devices.as_ref().unwrap().len(), 2);
        assert_eq!(irq.when, When::Chance(5_000));
        assert_eq!(irq.devices, Some(vec![devices()[1].0]));
    }

    #[test]
    fn without_a_number_every_time_is_meant() {
        assert_eq!(rules("irq:drop").unwrap()[0].when, When::From(1));
    }

    #[test]
    fn an_error_shows_its_place() {
        assert_eq!(
            rules("irq:drop,map:ENOMEMM@3").unwrap_err(),
            "--inject, column 14: no such errno: \"ENOMEMM\"; --inject help lists them\n\
             \x20 irq:drop,map:ENOMEMM@3\n\
             \x20              ^^^^^^^"
        );
    }

    #[test]
    fn what_is_no_rule_is_refused() {
        for (text, place, words) in [
            ("", 1, "a rule is what:effect"),
            ("map", 1, "a rule is what:effect"),
            ("irq:drop,", 10, "a rule is what:effect"),
            ("mapp:EIO", 1, "no such call"),
            ("map:", 5, "no such errno"),
            ("dma:drop", 5, "what dma can do is \"fault\""),
            ("irq:drop@0", 10, "counts from 1"),
            ("irq:drop@1@2", 12, "one number"),
            ("irq:drop@101%", 10, "percentage"),
            ("irq:drop@0.00001%", 10, "percentage"),
            ("irq:drop@99999999999999999999", 10, "counts from 1"),
            ("dma:fault@nvne", 11, "edu 0000:01:00.0, nvme"),
            ("dma:fault@09:00.0", 11, "neither a number nor a device"),
            ("dma:fault@edu@nvme", 15, "one device"),
            ("map:EIO@nvme", 9, "called on no device"),
            ("é:EIO", 1, "no such call"),
        ] {
            let error = rules(text).unwrap_err();
            let start = format!("--inject, column {place}: ");
            assert!(
                error.starts_with(&start) && error.contains(words),
                "{error}"
            );
        }
    }
}
