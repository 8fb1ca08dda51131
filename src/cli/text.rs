//! How values are written for people.

use std::io::Write as _;
use std::time::Duration;

use serde_json::Value;

use crate::message::RowId;

/// Without quotes; control characters, which could steer a terminal, are shown as what they are.
pub(super) fn plain(value: &Value) -> String {
    match value {
        Value::String(text) if text.chars().any(char::is_control) => text.escape_debug().to_string(),
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// Text of several lines for a terminal: control characters other than line ends and tabs are shown as what they are.
pub(super) fn steerless(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for char in text.chars() {
        match char.is_control() && char != '\n' && char != '\t' {
            true => shown.extend(char.escape_debug()),
            false => shown.push(char),
        }
    }
    shown
}

/// Seconds as a person says them: two units at the most.
pub(super) fn span(seconds: &Value) -> String {
    let seconds = seconds.as_f64().unwrap_or_default();
    if seconds < 10.0 {
        return format!("{seconds:.1}s");
    }
    let text = humantime::format_duration(Duration::from_secs(seconds as u64)).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// Rows in ascending order, in brackets; those that follow each other by their ends: `[3, 7 to 205]`.
pub(super) fn ranges(rows: impl IntoIterator<Item = RowId>) -> String {
    let mut ranges: Vec<(i64, i64)> = Vec::new();
    for RowId(row) in rows {
        match ranges.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(row) => *last = row,
            _ => ranges.push((row, row)),
        }
    }
    let texts = ranges.into_iter().map(|(first, last)| match first == last {
        true => first.to_string(),
        false => format!("{first} to {last}"),
    });
    format!("[{}]", texts.collect::<Vec<_>>().join(", "))
}

/// A reader that went away, as `head` does, is no error.
pub(super) fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn spans_are_short_and_terminals_are_not_steered() {
        assert_eq!(span(&json!(0.04)), "0.0s");
        assert_eq!(span(&json!(93_784)), "1day 2h");
        assert_eq!(plain(&json!("a\u{1b}[2Jb")), "a\\u{1b}[2Jb");
        assert_eq!(steerless("\"a\"\n\tb\u{9b}2J\r"), "\"a\"\n\tb\\u{9b}2J\\r");
    }

    #[test]
    fn rows_that_follow_each_other_are_named_by_their_ends() {
        let named = |rows: &[i64]| ranges(rows.iter().copied().map(RowId));
        assert_eq!(named(&[]), "[]");
        assert_eq!(named(&[7]), "[7]");
        assert_eq!(named(&[-1, 0, 3, 5, 6, 7, 9]), "[-1 to 0, 3, 5 to 7, 9]");
    }
}
