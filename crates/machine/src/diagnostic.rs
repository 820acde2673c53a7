//! What is wrong with a machine file or an argument, and where: file, line,
//! column, the line itself and a mark under the place.
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

/// A text that was read: a file, or one `--device` argument.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Origin {
    pub(crate) name: String,
    pub(crate) text: String,
    pub(crate) form: Form,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Form {
    File,
    Argument,
}

/// A place in a text, as a range of bytes.
#[derive(Clone, Debug)]
pub(crate) struct Mark {
    pub(crate) origin: Arc<Origin>,
    pub(crate) range: Range<usize>,
}

impl Mark {
    /// `file:line:column`, or the argument and the character in it.
    pub(crate) fn location(&self) -> String {
        self.place().location()
    }

    fn place(&self) -> Place {
        let text = &self.origin.text;
        let start = (0..=self.range.start.min(text.len()))
            .rev()
            .find(|&at| text.is_char_boundary(at))
            .unwrap_or(0);
        let (before, after) = text.split_at_checked(start).unwrap_or(("", text));
        let line_start = before.rfind('\n').map_or(0, |at| at.saturating_add(1));
        let head = before.get(line_start..).unwrap_or("");
        let tail = after.split(['\n', '\r']).next().unwrap_or("");
        let marked = self.range.end.saturating_sub(start).min(tail.len());
        let marked = tail.char_indices().filter(|(at, _)| *at < marked).count();
        let lines = before.matches('\n').count();
        Place {
            origin: Arc::clone(&self.origin),
            line: lines.saturating_add(1),
            column: head.chars().count().saturating_add(1),
            head: head.to_owned(),
            tail: tail.to_owned(),
            marked: marked.max(1),
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Place {
    origin: Arc<Origin>,
    line: usize,
    column: usize,
    head: String,
    tail: String,
    marked: usize,
}

/// Characters of a line that are shown on either side of a mark.
const SHOWN: usize = 100;

impl Place {
    fn location(&self) -> String {
        let Origin { name, form, .. } = &*self.origin;
        match form {
            Form::File => format!("{name}:{}:{}", self.line, self.column),
            Form::Argument => format!("--device {name}, character {}", self.column),
        }
    }

    /// The line with a mark under the place.
    fn excerpt(&self, label: &str) -> String {
        let plain = |c: char| if c.is_control() { ' ' } else { c };
        let skip = self.head.chars().count().saturating_sub(SHOWN);
        let head: String = self.head.chars().skip(skip).map(plain).collect();
        let tail: String = self.tail.chars().take(SHOWN).map(plain).collect();
        let indent = " ".repeat(head.chars().count());
        let marks = "^".repeat(self.marked.min(SHOWN));
        let number = match self.origin.form {
            Form::File => self.line.to_string(),
            Form::Argument => String::new(),
        };
        let gap = " ".repeat(number.len());
        let marked = format!("{indent}{marks} {label}");
        format!("  {number} | {head}{tail}\n  {gap} | {}", marked.trim_end())
    }
}

/// One thing that is wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    message: String,
    place: Option<(Place, String)>,
    also: Option<(Place, String)>,
}

impl Finding {
    /// What is wrong, without the place.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Line and column, from 1, in characters; `None` for a finding about the
    /// whole.
    pub fn line_and_column(&self) -> Option<(usize, usize)> {
        self.place.as_ref().map(|(p, _)| (p.line, p.column))
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((place, label)) = &self.place else {
            return f.write_str(&self.message);
        };
        write!(f, "{}: {}", place.location(), self.message)?;
        write!(f, "\n{}", place.excerpt(label))?;
        if let Some((other, label)) = &self.also {
            write!(f, "\n{}: {label}", other.location())?;
            write!(f, "\n{}", other.excerpt(""))?;
        }
        Ok(())
    }
}

/// Everything found wrong with a machine; never empty. Displayed, each
/// finding is `file:line:column: message`, the line and a mark under it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Error {
    findings: Vec<Finding>,
    unreported: usize,
}

impl Error {
    /// Each finding, in the order of their discovery; at most 20.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, finding) in self.findings.iter().enumerate() {
            let gap = if index == 0 { "" } else { "\n" };
            write!(f, "{gap}{finding}")?;
        }
        match self.unreported {
            0 => Ok(()),
            n => write!(f, "\n{n} more"),
        }
    }
}

impl std::error::Error for Error {}

/// Collects what is wrong.
#[derive(Default)]
pub(crate) struct Report {
    findings: Vec<Finding>,
    unreported: usize,
}

const MAX_FINDINGS: usize = 20;

impl Report {
    /// Something wrong at a place; `label` stands beside the mark.
    pub(crate) fn at(&mut self, mark: &Mark, message: impl Into<String>, label: impl Into<String>) {
        self.add(|| Finding {
            message: message.into(),
            place: Some((mark.place(), label.into())),
            also: None,
        });
    }

    /// Something wrong between two places; `other_message` tells of the
    /// second.
    pub(crate) fn between(
        &mut self,
        mark: &Mark,
        message: impl Into<String>,
        other: &Mark,
        other_message: impl Into<String>,
    ) {
        self.add(|| Finding {
            message: message.into(),
            place: Some((mark.place(), String::new())),
            also: Some((other.place(), other_message.into())),
        });
    }

    fn add(&mut self, finding: impl FnOnce() -> Finding) {
        if self.findings.len() < MAX_FINDINGS {
            self.findings.push(finding());
        } else {
            self.unreported = self.unreported.saturating_add(1);
        }
    }

    /// The error, if anything was wrong so far.
    pub(crate) fn check(&mut self) -> Result<(), Error> {
        if self.findings.is_empty() {
            return Ok(());
        }
        Err(std::mem::take(self).into_error())
    }

    pub(crate) fn into_error(self) -> Error {
        Error {
            findings: self.findings,
            unreported: self.unreported,
        }
    }
}

/// `did you mean ...?` with the known name nearest to one that is not known,
/// or else the list of those known; empty if there is none.
pub(crate) fn suggest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let mut known: Vec<&str> = known.into_iter().collect();
    let budget = name.chars().count().div_euclid(3).max(1);
    let near = known.iter().map(|k| (distance(name, k), *k)).min();
    if let Some((_, nearest)) = near.filter(|(d, _)| *d <= budget) {
        return format!("did you mean `{nearest}`?");
    }
    const LISTED: usize = 20;
    let more = if known.len() > LISTED { ", ..." } else { "" };
    known.truncate(LISTED);
    match known.as_slice() {
        [] => String::new(),
        _ => format!("known: {}{more}", known.join(", ")),
    }
}

/// Edits (insert, delete, replace, swap neighbours) from one name to another,
/// in the letters that differ; names longer than any of ours are far.
fn distance(from: &str, to: &str) -> usize {
    const LONGEST: usize = 64;
    let from: Vec<char> = from.chars().map(|c| c.to_ascii_lowercase()).collect();
    let to: Vec<char> = to.chars().map(|c| c.to_ascii_lowercase()).collect();
    if from.len() > LONGEST || to.len() > LONGEST {
        return usize::MAX;
    }
    let mut before: Vec<usize> = Vec::new();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    let cell = |row: &[usize], at: usize| row.get(at).copied().unwrap_or(usize::MAX);
    let mut left_char = None;
    for (i, &a) in from.iter().enumerate() {
        let mut next = vec![i.saturating_add(1)];
        let mut last = None;
        for (j, &b) in to.iter().enumerate() {
            let replaced = cell(&row, j).saturating_add(usize::from(a != b));
            let inserted = cell(&next, j).saturating_add(1);
            let deleted = cell(&row, j.saturating_add(1)).saturating_add(1);
            let swapped = match (j.checked_sub(1), left_char == Some(b) && last == Some(a)) {
                (Some(two_back), true) => cell(&before, two_back).saturating_add(1),
                _ => usize::MAX,
            };
            next.push(replaced.min(inserted).min(deleted).min(swapped));
            last = Some(b);
        }
        before = std::mem::replace(&mut row, next);
        left_char = Some(a);
    }
    cell(&row, to.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_edits() {
        for (from, to, edits) in [
            ("size", "size", 0),
            ("sise", "size", 1),
            ("siez", "size", 1),
            ("sz", "size", 2),
            ("", "size", 4),
            ("kind", "king", 1),
        ] {
            assert_eq!(distance(from, to), edits, "{from} {to}");
        }
    }

    #[test]
    fn a_name_that_is_near_nothing_gets_the_list() {
        assert_eq!(suggest("sise", ["size", "path"]), "did you mean `size`?");
        assert_eq!(suggest("colour", ["size", "path"]), "known: size, path");
        assert_eq!(suggest("x", []), "");
    }

    #[test]
    fn a_mark_shows_line_column_and_characters() {
        let origin = Arc::new(Origin {
            name: "m.toml".into(),
            text: "a = 1\n\u{e9}\u{e9} = 22\n".into(),
            form: Form::File,
        });
        let mut report = Report::default();
        report.at(
            &Mark {
                origin,
                range: 13..15,
            },
            "bad",
            "here",
        );
        let shown = report.into_error().to_string();
        assert_eq!(shown, "m.toml:2:6: bad\n  2 | éé = 22\n    |      ^^ here");
    }
}
