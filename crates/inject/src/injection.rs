//! The rules at work: counts, decides, remembers what was done.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use iogate_dma::{Request, Source};
use iogate_host::{Actor, Interpose};
use serde_json::{Value, json};

use crate::GrammarError;
use crate::grammar;
use crate::rule::{self, Rule, What};

/// Failures that are kept one by one; further ones are only counted.
const MOST_EVENTS: usize = 10_000;

/// The failures of one session.
pub struct Injection {
    started: Instant,
    seed: u64,
    rules: Vec<Rule>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What each rule has counted, by device.
    counts: BTreeMap<(usize, Option<Source>), u64>,
    /// How often each rule took effect.
    effects: BTreeMap<usize, u64>,
    gone: Vec<Source>,
    events: Vec<Event>,
}

/// A failure that was made.
struct Event {
    rule: usize,
    at: Instant,
    device: Option<Source>,
    what: String,
}

impl Injection {
    /// The rules of `texts`, for a machine that has `devices`, by address and
    /// model.
    pub fn new(
        texts: &[String],
        seed: u64,
        devices: &[(Source, String)],
    ) -> Result<Self, GrammarError> {
        let mut rules = Vec::new();
        for text in texts {
            grammar::parse(text, devices, &mut rules)?;
        }
        Ok(Self {
            started: Instant::now(),
            seed,
            rules,
            state: Mutex::default(),
        })
    }

    /// One line a rule: what it came to.
    pub fn summary(&self) -> Vec<String> {
        let state = self.lock();
        let line = |(index, rule): (usize, &Rule)| {
            let times = state.effects.get(&index).copied().unwrap_or_default();
            match times {
                0 => format!("injected {}: never, nothing met it", rule.text),
                1 => format!("injected {}: once", rule.text),
                times => format!("injected {}: {times} times", rule.text),
            }
        };
        self.rules.iter().enumerate().map(line).collect()
    }

    /// What was done, for a report: `seed`, `rules`, `events`.
    pub fn report(&self) -> Value {
        let state = self.lock();
        let rules: Vec<_> = self
            .rules
            .iter()
            .enumerate()
            .map(|(index, rule)| {
                let times = state.effects.get(&index).copied().unwrap_or_default();
                json!({ "rule": rule.text, "times": times })
            })
            .collect();
        let events: Vec<_> = state
            .events
            .iter()
            .map(|event| {
                let at = event.at.saturating_duration_since(self.started);
                json!({
                    "rule": self.rules.get(event.rule).map(|rule| rule.text.as_str()),
                    "at_seconds": at.as_secs_f64(),
                    "device": event.device.map(|device| device.to_string()),
                    "what": event.what,
                })
            })
            .collect();
        json!({ "seed": self.seed, "rules": rules, "events": events })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts an occurrence with every rule that `concerns` it; the first one
    /// that takes effect, which is told of as `what`.
    fn occurs(
        &self,
        device: Option<Source>,
        concerns: impl Fn(&What) -> bool,
        what: impl Fn() -> String,
    ) -> Option<&Rule> {
        let mut guard = self.lock();
        let state = &mut *guard;
        let mut effective = None;
        for (index, rule) in self.rules.iter().enumerate() {
            if !concerns(&rule.what) || !rule.is_about(device) {
                continue;
            }
            let count = state.counts.entry((index, device)).or_default();
            *count = count.saturating_add(1);
            let number = u64::try_from(index).unwrap_or(u64::MAX);
            let dice = rule::dice(self.seed, number, key(device), *count);
            if effective.is_none() && rule.when.is(*count, dice) {
                effective = Some((index, rule));
            }
        }
        let (index, rule) = effective?;
        let times = state.effects.entry(index).or_default();
        *times = times.saturating_add(1);
        if state.events.len() < MOST_EVENTS {
            state.events.push(Event {
                rule: index,
                at: Instant::now(),
                device,
                what: what(),
            });
        }
        Some(rule)
    }

    /// Whether `device` has vanished.
    pub(crate) fn is_gone(&self, device: Source) -> bool {
        self.lock().gone.contains(&device)
    }

    /// Whether a device answers an access to its registers, which counts.
    pub(crate) fn register(&self, device: Source) -> bool {
        if self.is_gone(device) {
            return false;
        }
        let is_vanish = |what: &What| *what == What::Vanish;
        let Some(rule) = self.occurs(Some(device), is_vanish, || "vanished".to_owned()) else {
            return true;
        };
        self.lock().gone.push(device);
        tracing::event!(
            name: "inject_vanish",
            target: "iogate",
            tracing::Level::INFO,
            device = %device,
            rule = rule.text,
        );
        false
    }

    /// Whether an access to memory is refused.
    pub(crate) fn refuses(&self, request: &Request) -> bool {
        let device = request.source.function();
        if self.is_gone(device) {
            return true;
        }
        let what = || format!("DMA {} at {}", request.access, request.span);
        let rule = self.occurs(Some(device), |what| *what == What::Dma, what);
        if let Some(rule) = rule {
            tracing::event!(
                name: "inject_dma",
                target: "iogate",
                tracing::Level::INFO,
                device = %device,
                access = %request.access,
                iova = %request.span.first(),
                rule = rule.text,
            );
        }
        rule.is_some()
    }

    /// Whether an interrupt message is lost.
    pub(crate) fn loses(&self, device: Source, vector: u32) -> bool {
        if self.is_gone(device) {
            return true;
        }
        let what = || format!("interrupt message, vector {vector}");
        let rule = self.occurs(Some(device), |what| *what == What::Interrupt, what);
        if let Some(rule) = rule {
            tracing::event!(
                name: "inject_irq",
                target: "iogate",
                tracing::Level::INFO,
                device = %device,
                vector,
                rule = rule.text,
            );
        }
        rule.is_some()
    }
}

/// A device as a number.
fn key(device: Option<Source>) -> u64 {
    device.map_or(u64::MAX, |device| {
        u64::from(device.segment) << 16 | u64::from(device.requester.0)
    })
}

impl Interpose for Injection {
    fn call(&self, name: &'static str, device: Option<Source>, _: Actor) -> Option<i32> {
        let concerns = |what: &What| matches!(what, What::Calls(names, _) if names.contains(&name));
        let rule = self.occurs(device, concerns, || name.to_owned())?;
        let What::Calls(_, errno) = &rule.what else {
            return None;
        };
        tracing::event!(
            name: "inject_call",
            target: "iogate",
            tracing::Level::INFO,
            call = name,
            device = device.map(tracing::field::display),
            result = %errno,
            rule = rule.text,
        );
        Some(errno.0)
    }

    fn answers(&self, device: Source) -> bool {
        self.register(device)
    }
}
