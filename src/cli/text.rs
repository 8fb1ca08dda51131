//! How values are written for people.

use std::io::Write as _;
use std::time::Duration;

use serde_json::Value;

/// Without quotes; control characters, which could steer a terminal, are shown as what they are.
pub(super) fn plain(value: &Value) -> String {
    match value {
        Value::String(text) if text.chars().any(char::is_control) => text.escape_debug().to_string(),
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
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
    }
}
