//! Keys and values of one entry, from a file or from an argument, read as what
//! they have to be; and what a model says about its own keys.
use crate::diagnostic::{Mark, Report, suggest};
use crate::model::{Properties, Value};
use crate::quantity;
use iogate_dma::Source;
use std::ops::RangeInclusive;

/// A device model that a machine may have.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Model {
    /// The name in the file.
    pub name: &'static str,
    /// The keys that it knows besides those of every device.
    pub properties: Vec<Property>,
}

/// A key that a model knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Property {
    /// The key. One that every device has (`at`, `group`, ...) is never asked
    /// for under this name.
    pub name: &'static str,
    /// What its value has to be.
    pub kind: PropertyKind,
}

/// What the value of a property has to be; which values are good is the
/// model's to say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PropertyKind {
    /// Bytes.
    Size,
    /// A whole number.
    Integer,
    /// Yes or no.
    Boolean,
    /// Any text without control characters.
    Text,
}

/// A value as it stands in the text.
#[derive(Clone, Debug)]
pub(crate) enum Raw<'a> {
    /// Part of an argument: whatever is wanted there.
    Word(String),
    Text(String),
    Integer(String, u32),
    Boolean(bool),
    Array(Vec<(Raw<'a>, Mark)>),
    Table(Vec<Field<'a>>),
    Other(&'a str),
}

impl Raw<'_> {
    fn what(&self) -> &str {
        match self {
            Self::Word(_) | Self::Text(_) => "a text",
            Self::Integer(..) => "a number",
            Self::Boolean(_) => "a boolean",
            Self::Array(_) => "a list",
            Self::Table(_) => "a table",
            Self::Other(what) => what,
        }
    }
}

/// One key with its value.
#[derive(Clone, Debug)]
pub(crate) struct Field<'a> {
    pub(crate) key: String,
    pub(crate) key_mark: Mark,
    pub(crate) value: Raw<'a>,
    pub(crate) mark: Mark,
}

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(crate) struct Located<T> {
    pub(crate) value: T,
    pub(crate) mark: Mark,
}

/// One table being read; what is wrong with it goes to the report.
pub(crate) struct Table<'a, 'r> {
    /// What it is, for messages: `[[device]]`.
    pub(crate) what: &'static str,
    /// Where it starts.
    pub(crate) mark: &'a Mark,
    pub(crate) fields: &'a [Field<'a>],
    pub(crate) report: &'r mut Report,
}

impl<'a> Table<'a, '_> {
    /// Reports every key that is not among those known.
    pub(crate) fn only(&mut self, known: &[&str]) {
        for field in self.fields {
            if !known.contains(&field.key.as_str()) {
                let message = format!("unknown key `{}` in {}", shown(&field.key), self.what);
                let hint = suggest(&field.key, known.iter().copied());
                self.report.at(&field.key_mark, message, hint);
            }
        }
    }

    pub(crate) fn field(&self, key: &str) -> Option<&'a Field<'a>> {
        self.fields.iter().find(|field| field.key == key)
    }

    /// As [`field`](Self::field), but reports when it is not there.
    pub(crate) fn needed(&mut self, key: &str) -> Option<&'a Field<'a>> {
        let field = self.field(key);
        if field.is_none() {
            let message = format!("{} has no `{key}`", self.what);
            self.report.at(self.mark, message, "");
        }
        field
    }

    fn wrong(&mut self, field: &Field<'_>, wants: &str) {
        let message = match &field.value {
            Raw::Word(word) => format!("`{}` wants {wants}, not `{}`", field.key, shown(word)),
            other => format!("`{}` wants {wants}, not {}", field.key, other.what()),
        };
        self.report.at(&field.mark, message, "");
    }

    pub(crate) fn bad(&mut self, field: &Field<'_>, why: &str) {
        let message = format!("bad value of `{}`", field.key);
        self.report.at(&field.mark, message, why);
    }

    /// A text without control characters.
    pub(crate) fn text(&mut self, field: &'a Field<'a>) -> Option<Located<String>> {
        match &field.value {
            Raw::Text(text) | Raw::Word(text) if text.chars().any(char::is_control) => {
                self.bad(field, "a control character cannot be part of it");
                None
            }
            Raw::Text(text) | Raw::Word(text) => Some(located(field, text.clone())),
            _ => {
                self.wrong(field, "a text");
                None
            }
        }
    }

    /// A text that can be part of a path: letters, digits, `_`, `-`, `.`.
    pub(crate) fn name(&mut self, field: &'a Field<'a>) -> Option<Located<String>> {
        const LONGEST: usize = 64;
        let name = self.text(field)?;
        let letters = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        let plain = name.value.chars().all(letters) && !name.value.starts_with('.');
        if !plain || name.value.is_empty() || name.value.len() > LONGEST {
            self.bad(
                field,
                "a name is up to 64 letters, digits, `_`, `-` and `.`, not first a `.`",
            );
            return None;
        }
        Some(name)
    }

    /// One of the words, as its index.
    pub(crate) fn choice(&mut self, field: &'a Field<'a>, words: &[&str]) -> Option<usize> {
        let text = self.text(field)?;
        let found = words.iter().position(|word| *word == text.value);
        if found.is_none() {
            let message = format!("`{}` cannot be `{}`", field.key, shown(&text.value));
            let hint = suggest(&text.value, words.iter().copied());
            self.report.at(&field.mark, message, hint);
        }
        found
    }

    pub(crate) fn boolean(&mut self, field: &'a Field<'a>) -> Option<Located<bool>> {
        let value = match &field.value {
            Raw::Boolean(value) => Some(*value),
            Raw::Word(word) => match word.as_str() {
                "true" | "on" | "yes" => Some(true),
                "false" | "off" | "no" => Some(false),
                _ => None,
            },
            _ => None,
        };
        if value.is_none() {
            self.wrong(field, "true or false");
        }
        value.map(|value| located(field, value))
    }

    /// A whole number without unit, within bounds.
    pub(crate) fn integer(
        &mut self,
        field: &'a Field<'a>,
        bounds: RangeInclusive<u64>,
    ) -> Option<u64> {
        let value = match &field.value {
            Raw::Integer(digits, radix) => quantity::digits(digits, *radix),
            Raw::Word(word) => quantity::integer(word),
            _ => {
                self.wrong(field, "a whole number");
                return None;
            }
        };
        self.bounded(field, value, bounds, |n| n.to_string())
    }

    /// Bytes, within bounds.
    pub(crate) fn size(
        &mut self,
        field: &'a Field<'a>,
        bounds: RangeInclusive<u64>,
    ) -> Option<u64> {
        let value = self.size_of(field, &field.value)?;
        self.bounded(field, value, bounds, quantity::display_size)
    }

    /// An address of memory.
    pub(crate) fn address(&mut self, field: &'a Field<'a>) -> Option<u64> {
        let value = match &field.value {
            Raw::Integer(digits, radix) => quantity::digits(digits, *radix),
            Raw::Word(text) | Raw::Text(text) => quantity::integer(text),
            _ => {
                self.wrong(field, "an address such as 0xfee00000");
                return None;
            }
        };
        self.bounded(field, value, 0..=u64::MAX, |n| n.to_string())
    }

    fn size_of(&mut self, field: &Field<'_>, value: &Raw<'_>) -> Option<Result<u64, &'static str>> {
        match value {
            Raw::Integer(digits, radix) => Some(quantity::digits(digits, *radix)),
            Raw::Word(text) | Raw::Text(text) => Some(quantity::size(text)),
            _ => {
                self.wrong(field, "a size such as \"64 MiB\"");
                None
            }
        }
    }

    fn bounded(
        &mut self,
        field: &Field<'_>,
        value: Result<u64, &'static str>,
        bounds: RangeInclusive<u64>,
        display: impl Fn(u64) -> String,
    ) -> Option<u64> {
        let why = match value {
            Ok(value) if bounds.contains(&value) => return Some(value),
            Ok(_) => {
                let (least, most) = (display(*bounds.start()), display(*bounds.end()));
                format!("this is not from {least} to {most}")
            }
            Err(why) => why.to_owned(),
        };
        self.bad(field, &why);
        None
    }

    /// A list of sizes, each at its place.
    pub(crate) fn sizes(&mut self, field: &'a Field<'a>) -> Option<Vec<Located<u64>>> {
        let Raw::Array(items) = &field.value else {
            self.wrong(field, "a list of sizes such as [\"4 KiB\", \"2 MiB\"]");
            return None;
        };
        let mut sizes = Vec::new();
        for (item, mark) in items {
            let item = Field {
                key: field.key.clone(),
                key_mark: field.key_mark.clone(),
                value: item.clone(),
                mark: mark.clone(),
            };
            match self.size_of(&item, &item.value)? {
                Ok(value) => sizes.push(Located {
                    value,
                    mark: mark.clone(),
                }),
                Err(why) => self.bad(&item, why),
            }
        }
        Some(sizes)
    }

    /// A list of tables.
    pub(crate) fn tables(&mut self, field: &'a Field<'a>) -> Vec<(&'a [Field<'a>], &'a Mark)> {
        let Raw::Array(items) = &field.value else {
            self.wrong(field, "a list of tables");
            return Vec::new();
        };
        let mut tables = Vec::new();
        for (item, mark) in items {
            match item {
                Raw::Table(fields) => tables.push((fields.as_slice(), mark)),
                other => {
                    let message = format!("`{}` wants tables, not {}", field.key, other.what());
                    self.report.at(mark, message, "");
                }
            }
        }
        tables
    }

    /// The address of a PCI function.
    pub(crate) fn source(&mut self, field: &'a Field<'a>) -> Option<Located<Source>> {
        let text = self.text(field)?;
        match text.value.parse() {
            Ok(source) => Some(located(field, source)),
            Err(_) => {
                self.bad(field, "an address is of the form 0000:01:00.0");
                None
            }
        }
    }

    /// What the entry says about its model.
    pub(crate) fn properties(&mut self, model: &Model) -> Properties {
        let mut properties = Vec::new();
        for field in self.fields {
            let property = model.properties.iter().find(|p| p.name == field.key);
            let Some(property) = property else { continue };
            let value = match property.kind {
                PropertyKind::Size => self.size(field, 0..=u64::MAX).map(Value::Size),
                PropertyKind::Integer => self.integer(field, 0..=u64::MAX).map(Value::Integer),
                PropertyKind::Boolean => self.boolean(field).map(|b| Value::Boolean(b.value)),
                PropertyKind::Text => self.text(field).map(|t| Value::Text(t.value)),
            };
            properties.extend(value.map(|value| (property.name.to_owned(), value)));
        }
        Properties(properties)
    }
}

fn located<T>(field: &Field<'_>, value: T) -> Located<T> {
    Located {
        value,
        mark: field.mark.clone(),
    }
}

/// A piece of untrusted text, short enough for a message.
pub(crate) fn shown(text: &str) -> String {
    const LONGEST: usize = 40;
    let mut short: String = text
        .chars()
        .take(LONGEST)
        .map(|c| if c.is_control() { '?' } else { c })
        .collect();
    if short.len() < text.len() {
        short.push_str("...");
    }
    short
}
