//! Templates of columns and text, and lists of columns.

use super::mapping::ColumnName;
use super::{TableNameError, findings::shown};

/// A piece of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Text as it is.
    Text(String),
    /// The text of a column; nothing where it is null.
    Column(ColumnName),
}

/// A column's name.
pub(super) fn column(text: &str) -> Result<ColumnName, String> {
    text.parse().map_err(|error| bad_column(text, error))
}

fn bad_column(text: &str, error: TableNameError) -> String {
    let why = match error {
        TableNameError::NotPlain | TableNameError::TooManyParts => {
            "must be a column's name; put other characters than letters, digits and `_` in double quotes".to_owned()
        }
        error => error.to_string(),
    };
    format!("{why}; it {}", shown(text))
}

/// Any text would do, and would be shown: a URL that was put into the wrong variable must not be, for its password.
pub(super) fn no_url(text: &str) -> Result<(), String> {
    match text.contains("://") || text.contains('@') {
        true => Err("has `://` or `@`, like a URL that belongs into another variable".to_owned()),
        false => Ok(()),
    }
}

/// As for [`pieces`], but no URL, and not blank.
pub(super) fn template(text: &str) -> Result<Vec<Piece>, String> {
    no_url(text)?;
    match pieces(text)? {
        none if none.is_empty() => Err("is blank; write text and columns, or unset it".to_owned()),
        pieces => Ok(pieces),
    }
}

/// `orders.{type}`, with `{{` and `}}` for braces.
pub(super) fn pieces(text: &str) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut plain = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(['{', '}']) {
        plain.push_str(&rest[..at]);
        let (brace, after) = (&rest[at..=at], &rest[at + 1..]);
        if let Some(behind) = after.strip_prefix(brace) {
            plain.push_str(brace);
            rest = behind;
            continue;
        }
        let (name, behind) = match after.split_once('}') {
            Some(parts) if brace == "{" => parts,
            _ => return Err("has a single brace: write `{column}`, or `{{` and `}}` for braces themselves".to_owned()),
        };
        if !plain.is_empty() {
            pieces.push(Piece::Text(std::mem::take(&mut plain)));
        }
        pieces.push(Piece::Column(
            ColumnName::raw(name).map_err(|error| bad_column(name, error))?,
        ));
        rest = behind;
    }
    plain.push_str(rest);
    if !plain.is_empty() {
        pieces.push(Piece::Text(plain));
    }
    Ok(pieces)
}

/// `tenant_id,trace_id:traceparent,"Odd, name":x`.
pub(super) fn header_columns(text: &str) -> Result<Vec<(ColumnName, String)>, String> {
    no_url(text)?;
    let mut headers: Vec<(ColumnName, String)> = Vec::new();
    for item in outside_quotes(text, ',') {
        let parts = outside_quotes(item, ':');
        let (name, header) = match parts[..] {
            [name] => (column(name.trim())?, None),
            [name, header] => (column(name.trim())?, Some(header.trim())),
            _ => {
                return Err(format!(
                    "must be `column` or `column:header`, separated by commas; an entry {}",
                    shown(item)
                ));
            }
        };
        let header = header.unwrap_or(name.as_str()).to_owned();
        if header.is_empty() || header.len() > 255 {
            return Err(format!(
                "has a header for {name} without a name, or with one over 255 bytes"
            ));
        }
        if headers.iter().any(|(_, other)| *other == header) {
            return Err(format!("has the header {header} twice"));
        }
        headers.push((name, header));
    }
    Ok(headers)
}

/// The parts between separators that are not within double quotes.
fn outside_quotes(text: &str, separator: char) -> Vec<&str> {
    let mut quoted = false;
    text.split(|c: char| {
        quoted ^= c == '"';
        c == separator && !quoted
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> ColumnName {
        ColumnName::raw(text).expect(text)
    }

    #[test]
    fn templates_are_columns_and_text() {
        let pieces = |text| template(text).expect(text);
        assert_eq!(
            pieces("a.{b c}{{x}}.{D\"}"),
            [
                Piece::Text("a.".to_owned()),
                Piece::Column(name("b c")),
                Piece::Text("{x}.".to_owned()),
                Piece::Column(name("D\""))
            ]
        );
        assert_eq!(pieces("orders"), [Piece::Text("orders".to_owned())]);
        for bad in ["", "{", "a}b", "{a", "{}", "{a{b}}c"] {
            let problem = template(bad).map(|pieces| format!("{pieces:?}"));
            // A name may hold a brace, as any other character.
            assert!(problem.is_err() || bad == "{a{b}}c", "{bad}: {problem:?}");
        }
    }

    #[test]
    fn header_columns_may_have_other_names_and_quotes() {
        assert_eq!(
            header_columns("tenant_id, trace_id:traceparent,\"a,b:c\":x-odd"),
            Ok(vec![
                (name("tenant_id"), "tenant_id".to_owned()),
                (name("trace_id"), "traceparent".to_owned()),
                (name("a,b:c"), "x-odd".to_owned())
            ])
        );
        for bad in ["", "a,,b", "a:b:c", "a:", "a b", "a:h,b:h"] {
            header_columns(bad).expect_err(bad);
        }
    }
}
