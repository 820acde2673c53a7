//! One `--device` argument taken apart: `MODEL[,key=value]...`, a comma in a
//! value written twice.
use crate::diagnostic::{Form, Mark, Origin, Report};
use crate::fields::{Field, Raw};
use std::sync::Arc;

/// The fields that the argument stands for, `model` first, and the mark of the
/// whole.
pub(crate) fn fields(argument: &str, report: &mut Report) -> (Vec<Field<'static>>, Mark) {
    let origin = Arc::new(Origin {
        name: argument
            .chars()
            .filter(|c| !c.is_control())
            .take(60)
            .collect(),
        text: argument.to_owned(),
        form: Form::Argument,
    });
    let mark = |start: usize, end: usize| Mark {
        origin: Arc::clone(&origin),
        range: start..end,
    };
    let mut fields: Vec<Field<'static>> = Vec::new();
    for (index, (start, piece)) in pieces(argument).into_iter().enumerate() {
        let end = start.saturating_add(piece.len());
        let (key, value, value_start) = match (index, piece.split_once('=')) {
            (0, _) => ("model", piece, start),
            (_, Some((key, value))) => (key, value, end.saturating_sub(value.len())),
            (_, None) => {
                let label = "each part after the model is key=value; a comma in a value is `,,`";
                report.at(&mark(start, end), "no `=` here", label);
                continue;
            }
        };
        let key_mark = mark(start, start.saturating_add(key.len()));
        if let Some(first) = fields.iter().find(|field| field.key == key) {
            let message = format!("`{}` is there twice", crate::fields::shown(key));
            report.between(&key_mark, message, &first.key_mark, "the first one");
            continue;
        }
        fields.push(Field {
            key: key.to_owned(),
            key_mark,
            value: Raw::Word(value.replace(",,", ",")),
            mark: mark(value_start, end),
        });
    }
    (fields, mark(0, argument.len()))
}

/// The parts between single commas, each with its offset.
fn pieces(text: &str) -> Vec<(usize, &str)> {
    let mut pieces = Vec::new();
    let mut start = 0;
    let mut commas = text.match_indices(',').map(|(at, _)| at).peekable();
    while let Some(at) = commas.next() {
        let after = at.saturating_add(1);
        if commas.next_if_eq(&after).is_none() {
            pieces.extend(text.get(start..at).map(|piece| (start, piece)));
            start = after;
        }
    }
    pieces.extend(text.get(start..).map(|piece| (start, piece)));
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_comma_that_is_written_twice_belongs_to_the_value() {
        assert_eq!(pieces("nvme"), [(0, "nvme")]);
        assert_eq!(pieces("a,b=1"), [(0, "a"), (2, "b=1")]);
        assert_eq!(
            pieces("a,b=x,,y,c=2"),
            [(0, "a"), (2, "b=x,,y"), (9, "c=2")]
        );
        assert_eq!(pieces(",,"), [(0, ",,")]);
        let (fields, _) = fields("a,b=x,,y", &mut Report::default());
        assert!(matches!(&fields[1].value, Raw::Word(w) if w == "x,y"));
    }
}
