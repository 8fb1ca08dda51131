//! The name of the outbox table, validated once.

use std::{fmt, str::FromStr};

/// PostgreSQL silently cuts longer names, so that another table than the named one is read.
const MAX_BYTES: usize = 63;

/// A table, perhaps in a schema: `outbox`, `app.outbox` or `"My App"."Outbox"`.
///
/// Names are taken as written, case included: the relay always quotes them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TableName {
    schema: Option<String>,
    name: String,
}

impl TableName {
    /// The schema's raw name, without quotes.
    pub fn schema(&self) -> Option<&str> {
        self.schema.as_deref()
    }

    /// The table's raw name, without quotes.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What a failed load holds in its place; never seen by users of a [`super::Config`].
    pub(super) fn placeholder() -> Self {
        Self {
            schema: None,
            name: String::new(),
        }
    }
}

/// The form that is safe in SQL, in standard quotes (which the relay asks for in its sessions with MySQL): `"schema"."table"`.
impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(schema) = &self.schema {
            write!(f, "\"{}\".", schema.replace('"', "\"\""))?;
        }
        write!(f, "\"{}\"", self.name.replace('"', "\"\""))
    }
}

/// Why a text names no table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TableNameError {
    /// A part holds nothing, as in `app.` or `""`.
    #[error("has an empty part")]
    Empty,
    /// An unquoted part holds other than letters, digits, `_` and `$`, or starts with a digit.
    #[error(
        "must be `table` or `schema.table`; put other names than letters, digits and `_` in \
         double quotes, each part for itself"
    )]
    NotPlain,
    /// A quoted part has no closing quote.
    #[error("has no closing double quote")]
    Unclosed,
    /// More than a schema and a table.
    #[error("has more than two parts")]
    TooManyParts,
    /// A part is longer than databases keep.
    #[error("has a part over {MAX_BYTES} bytes")]
    TooLong,
    /// No database stores it.
    #[error("has a NUL character")]
    Nul,
}

impl FromStr for TableName {
    type Err = TableNameError;

    fn from_str(text: &str) -> Result<Self, TableNameError> {
        let (first, rest) = part(text)?;
        let Some(rest) = rest else {
            return Ok(Self {
                schema: None,
                name: first,
            });
        };
        match part(rest)? {
            (name, None) => Ok(Self {
                schema: Some(first),
                name,
            }),
            _ => Err(TableNameError::TooManyParts),
        }
    }
}

/// The raw name of a text that has one part only, as a column's name.
pub(super) fn only_part(text: &str) -> Result<String, TableNameError> {
    match part(text)? {
        (name, None) => Ok(name),
        _ => Err(TableNameError::TooManyParts),
    }
}

/// The first part's raw name, and what follows the dot behind it.
fn part(text: &str) -> Result<(String, Option<&str>), TableNameError> {
    let (name, rest) = match text.strip_prefix('"') {
        Some(text) => quoted(text)?,
        None => plain(text)?,
    };
    match name.len() {
        0 => Err(TableNameError::Empty),
        1..=MAX_BYTES if name.contains('\0') => Err(TableNameError::Nul),
        1..=MAX_BYTES => Ok((name, rest)),
        _ => Err(TableNameError::TooLong),
    }
}

fn plain(text: &str) -> Result<(String, Option<&str>), TableNameError> {
    let (name, rest) = match text.split_once('.') {
        Some((name, rest)) => (name, Some(rest)),
        None => (text, None),
    };
    let starts_well = !name.starts_with(|c: char| c.is_numeric() || c == '$');
    let allowed = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
    if starts_well && name.chars().all(allowed) {
        Ok((name.to_owned(), rest))
    } else {
        Err(TableNameError::NotPlain)
    }
}

/// Reads up to the closing quote; a doubled quote stands for one.
fn quoted(text: &str) -> Result<(String, Option<&str>), TableNameError> {
    let mut name = String::new();
    let mut rest = text;
    loop {
        let (before, after) = rest.split_once('"').ok_or(TableNameError::Unclosed)?;
        name.push_str(before);
        match after.chars().next() {
            Some('"') => name.push('"'),
            Some('.') => return Ok((name, Some(&after[1..]))),
            Some(_) => return Err(TableNameError::NotPlain),
            None => return Ok((name, None)),
        }
        rest = &after[1..];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> Result<TableName, TableNameError> {
        text.parse()
    }

    #[test]
    fn a_name_is_taken_as_written_and_shown_quoted() {
        for (text, schema, name, shown) in [
            ("outbox", None, "outbox", r#""outbox""#),
            ("Outbox_2$", None, "Outbox_2$", r#""Outbox_2$""#),
            ("app.outbox", Some("app"), "outbox", r#""app"."outbox""#),
            (r#""Mixed Case"."t""#, Some("Mixed Case"), "t", r#""Mixed Case"."t""#),
            (r#"app."a.b""#, Some("app"), "a.b", r#""app"."a.b""#),
            (r#""a""b".t"#, Some(r#"a"b"#), "t", r#""a""b"."t""#),
            (r#""x"";drop--""#, None, r#"x";drop--"#, r#""x"";drop--""#),
            ("übung", None, "übung", r#""übung""#),
        ] {
            let parsed = table(text).unwrap();
            assert_eq!((parsed.schema(), parsed.name()), (schema, name), "{text}");
            assert_eq!(parsed.to_string(), shown);
            assert_eq!(
                table(&parsed.to_string()),
                Ok(parsed),
                "what is shown can be read again"
            );
        }
    }

    #[test]
    fn what_names_no_table_is_refused() {
        let long = "x".repeat(64);
        for (text, error) in [
            ("", TableNameError::Empty),
            ("app.", TableNameError::Empty),
            (".outbox", TableNameError::Empty),
            (r#""""#, TableNameError::Empty),
            ("a b", TableNameError::NotPlain),
            ("1st", TableNameError::NotPlain),
            ("outbox; drop table x", TableNameError::NotPlain),
            (r#"a"b""#, TableNameError::NotPlain),
            (r#""a"b"#, TableNameError::NotPlain),
            (r#""a"#, TableNameError::Unclosed),
            ("a.b.c", TableNameError::TooManyParts),
            ("\"a\0b\"", TableNameError::Nul),
            (&long, TableNameError::TooLong),
        ] {
            assert_eq!(table(text), Err(error), "{text}");
        }
        assert!(table(&long[1..]).is_ok(), "63 bytes are allowed");
    }
}
