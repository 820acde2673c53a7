//! What a machine file says about one device, beyond its model and place.

use std::collections::BTreeMap;

use crate::BuildError;

/// The value of a property.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Value {
    /// A number.
    Integer(u64),
    /// A size in bytes ("64 MiB" in a machine file).
    Bytes(u64),
    /// A text.
    Text(String),
    /// Yes or no.
    Bool(bool),
}

/// What a property wants to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A number.
    Integer,
    /// A size in bytes; a plain number is one too.
    Bytes,
    /// A text.
    Text,
    /// Yes or no.
    Bool,
}

impl Kind {
    /// The kind in words for a person.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Integer => "a number",
            Self::Bytes => "a size",
            Self::Text => "a text",
            Self::Bool => "true or false",
        }
    }
}

/// A property that a model knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Property {
    /// Its name.
    pub name: &'static str,
    /// What it wants to be.
    pub kind: Kind,
    /// What it does, in a line, with its default and range.
    pub about: &'static str,
}

/// The properties given to one device, by name.
pub type Properties = BTreeMap<String, Value>;

/// Properties that were checked against those that a model knows.
pub(crate) struct Checked<'p>(&'p Properties);

impl<'p> Checked<'p> {
    /// Checks names and kinds.
    pub(crate) fn new(given: &'p Properties, known: &[Property]) -> Result<Self, BuildError> {
        for (name, value) in given {
            let property = known.iter().find(|property| property.name == name);
            let property = property.ok_or_else(|| BuildError::UnknownProperty {
                name: name.clone(),
                nearest: nearest(name, known.iter().map(|property| property.name)),
            })?;
            let fits = match value {
                Value::Integer(_) => matches!(property.kind, Kind::Integer | Kind::Bytes),
                Value::Bytes(_) => property.kind == Kind::Bytes,
                Value::Text(_) => property.kind == Kind::Text,
                Value::Bool(_) => property.kind == Kind::Bool,
            };
            if !fits {
                return Err(BuildError::Kind {
                    property: property.name,
                    wanted: property.kind.name(),
                });
            }
        }
        Ok(Self(given))
    }

    /// A number or a size.
    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        match self.0.get(name)? {
            Value::Integer(number) | Value::Bytes(number) => Some(*number),
            Value::Text(_) | Value::Bool(_) => None,
        }
    }

    /// Yes or no.
    pub(crate) fn yes(&self, name: &str) -> Option<bool> {
        match self.0.get(name)? {
            Value::Bool(yes) => Some(*yes),
            _ => None,
        }
    }

    /// A text.
    pub(crate) fn text(&self, name: &str) -> Option<&'p str> {
        match self.0.get(name)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// The name that is fewest edits away, if that is at most half of `name`.
pub(crate) fn nearest(
    name: &str,
    known: impl IntoIterator<Item = &'static str>,
) -> Option<&'static str> {
    known
        .into_iter()
        .map(|known| (edits(name, known), known))
        .min()
        .filter(|(edits, _)| edits.saturating_mul(2) <= name.chars().count().max(2))
        .map(|(_, known)| known)
}

/// Insertions, deletions and replacements from one text to the other.
fn edits(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.chars().count()).collect();
    for (line, a) in from.chars().enumerate() {
        let mut diagonal = line;
        let mut left = line.saturating_add(1);
        if let Some(first) = row.first_mut() {
            *first = left;
        }
        for (b, above) in to.chars().zip(row.iter_mut().skip(1)) {
            let replaced = diagonal.saturating_add(usize::from(a != b));
            diagonal = *above;
            left = replaced.min(left.min(*above).saturating_add(1));
            *above = left;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn edits_are_counted_as_levenshtein_does() {
        for (from, to, count) in [
            ("", "", 0),
            ("size", "size", 0),
            ("siez", "size", 2),
            ("kitten", "sitting", 3),
            ("", "abc", 3),
            ("abc", "", 3),
        ] {
            assert_eq!(edits(from, to), count, "{from} {to}");
        }
    }

    #[test]
    fn a_name_without_resemblance_has_no_nearest() {
        assert_eq!(nearest("sise", ["size", "serial"]), Some("size"));
        assert_eq!(nearest("colour", ["size", "serial"]), None);
    }
}
