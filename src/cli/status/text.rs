//! The report as text. It is drawn from the JSON, so that both say the same.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use anstyle::{AnsiColor, Style};
use serde_json::Value;

use crate::cli::text::{plain, span};

const GOOD: Style = AnsiColor::Green.on_default();
const BAD: Style = AnsiColor::Red.on_default().bold();
const ODD: Style = AnsiColor::Yellow.on_default();
const HEAD: Style = Style::new().bold();

/// Longer errors are cut; `dead-letters show` has all of it.
const ERROR_CHARS: usize = 100;

/// So many blocked keys are named: the rest of the report is to stay on the screen. `keys list` has all of them.
const KEYS: usize = 10;

/// Without the configuration. With colours, which the stream takes out where they are not wanted.
pub(super) fn text(report: &Value) -> String {
    let mut text = format!(
        "outbox-relay {}, table {}, {}\n",
        plain(&report["version"]),
        plain(&report["table"]),
        plain(&report["at"])
    );
    for (name, part) in [
        ("database", database(&report["database"])),
        ("broker", broker(&report["broker"])),
        ("relay here", relay(&report["relay"])),
        ("backlog", backlog(&report["backlog"])),
        ("dead letters", dead_letters(&report["dead_letters"])),
        ("blocked keys", blocked_keys(&report["blocked_keys"])),
        ("owners", owners(&report["owners"])),
        ("paused", paused(&report["paused"])),
    ] {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{HEAD}{name:13}{HEAD:#}{part}");
    }
    text
}

/// What is in force, variable by variable.
pub(super) fn configuration(report: &Value) -> String {
    let mut text = format!("{HEAD}configuration{HEAD:#}\n");
    for (name, value) in report["configuration"].as_object().into_iter().flatten() {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {name}={}", plain(value));
    }
    text
}

/// The part, or why there is none.
fn part(value: &Value, show: impl FnOnce(&Value) -> String) -> String {
    if value["ok"] == true {
        show(value)
    } else {
        let reason = plain(&value["reason"]);
        format!("{BAD}unknown:{BAD:#} {reason}")
    }
}

fn database(value: &Value) -> String {
    part(value, |value| {
        let ahead = value["clock_ahead_seconds"].as_f64().unwrap_or_default();
        let (product, version) = (plain(&value["product"]), plain(&value["version"]));
        let style = if ahead.abs() > 5.0 { ODD } else { Style::new() };
        format!(
            "{GOOD}ok{GOOD:#} {product} {version}, {}, {style}its clock is {:.1} s {} this one{style:#}",
            plain(&value["address"]),
            ahead.abs(),
            if ahead < 0.0 { "behind" } else { "ahead of" }
        )
    })
}

fn broker(value: &Value) -> String {
    if value["ok"] == true {
        let address = value.get("address").or_else(|| value["addresses"].get(0));
        let address = address.map(plain).unwrap_or_default();
        match &value["version"] {
            Value::Null => format!("{GOOD}ok{GOOD:#} {address}"),
            version => format!("{GOOD}ok{GOOD:#} {}, {address}", plain(version)),
        }
    } else {
        format!("{BAD}away:{BAD:#} {}", plain(&value["reason"]))
    }
}

fn relay(value: &Value) -> String {
    if value["ok"].is_null() || value.get("reason").is_some() {
        return format!("{ODD}none:{ODD:#} {}", plain(&value["reason"]));
    }
    let state = match (value["ok"] == true, value["ready"] == true) {
        (true, true) => format!("{GOOD}ok{GOOD:#}"),
        (true, false) => format!("{ODD}not ready{ODD:#}"),
        (false, _) => format!("{BAD}stuck{BAD:#}"),
    };
    let mut text = format!(
        "{state} {}, up {}, {:.1} published and {:.1} failed a second, {} in flight, {} shares",
        plain(&value["member"]),
        span(&value["uptime_seconds"]),
        value["published_per_second"].as_f64().unwrap_or_default(),
        value["failures_per_second"].as_f64().unwrap_or_default(),
        value["in_flight"],
        value["partitions_owned"],
    );
    for part in ["database", "broker"] {
        if !value[part].is_null() {
            let _ = write!(text, "\n  {BAD}{part}:{BAD:#} {}", plain(&value[part]));
        }
    }
    let failures = value["failures_by_reason"].as_object().into_iter().flatten();
    let failures: Vec<String> = failures.map(|(reason, count)| format!("{count} {reason}")).collect();
    if !failures.is_empty() {
        let _ = write!(text, "\n  failed since its start: {}", failures.join(", "));
    }
    if let Some(operation) = value["slow_database"]["operation"].as_str() {
        let took = span(&value["slow_database"]["seconds"]);
        let _ = write!(
            text,
            "\n  {ODD}the database is slow:{ODD:#} {operation} took {took} within the last minute"
        );
    }
    if !value["purge_problem"].is_null() {
        let _ = write!(text, "\n  {ODD}purge behind:{ODD:#} {}", plain(&value["purge_problem"]));
    }
    text
}

fn backlog(value: &Value) -> String {
    part(value, |value| {
        let least = if value["at_least"] == true { "at least " } else { "" };
        let dead = if value["dead"] == 0 { Style::new() } else { BAD };
        let retrying = if value["retrying"] == 0 { Style::new() } else { ODD };
        let oldest = match &value["oldest_age_seconds"] {
            Value::Null => "nothing is due".to_owned(),
            age => format!("the oldest is {} old", span(age)),
        };
        format!(
            "{least}{} pending, {retrying}{} retrying{retrying:#}, {dead}{} dead{dead:#}; {oldest}",
            value["pending"], value["retrying"], value["dead"]
        )
    })
}

fn dead_letters(value: &Value) -> String {
    part(value, |value| {
        let reasons: Vec<String> = value["by_reason"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(reason, count)| format!("{BAD}{count}{BAD:#} {reason}"))
            .collect();
        match reasons.len() {
            0 => "none".to_owned(),
            _ if value["at_least"] == true => format!("at least {}", reasons.join(", ")),
            _ => reasons.join(", "),
        }
    })
}

fn blocked_keys(value: &Value) -> String {
    part(value, |value| {
        let keys = value["keys"].as_array().map(Vec::as_slice).unwrap_or_default();
        let more = if value["more"] == true { "at least " } else { "" };
        let mut text = format!("{more}{}", keys.len());
        for key in keys.iter().take(KEYS) {
            let why = match plain(&key["why"]).as_str() {
                "dead_letter" => format!("a dead letter since {}: {}", plain(&key["since"]), error(key)),
                "delayed" => format!("due in {}", span(&key["due_in_seconds"])),
                _ => format!(
                    "tried again in {}, refused {} times: {}",
                    span(&key["due_in_seconds"]),
                    key["attempts"],
                    error(key)
                ),
            };
            let _ = write!(text, "\n  {:?} waits for row {}, {why}", plain(&key["key"]), key["row"]);
        }
        if keys.len() > KEYS {
            let _ = write!(text, "\n  and {} more", keys.len() - KEYS);
        }
        if !keys.is_empty() {
            text.push_str("\n  `keys list` and `keys release` deal with them");
        }
        text
    })
}

fn error(key: &Value) -> String {
    plain(&key["last_error"]).chars().take(ERROR_CHARS).collect()
}

fn owners(value: &Value) -> String {
    part(value, |value| {
        let members = value["members"].as_array().map(Vec::as_slice).unwrap_or_default();
        let free = if value["free"] == 0 { Style::new() } else { ODD };
        let mut text = format!(
            "{} relays, {free}{} of {} shares free{free:#}",
            members.len(),
            value["free"],
            value["partitions"]
        );
        let mut by_owner: BTreeMap<String, (Vec<String>, String)> = BTreeMap::new();
        for member in members {
            by_owner.entry(plain(&member["member"])).or_default();
        }
        for share in value["shares"].as_array().into_iter().flatten() {
            let (shares, since) = by_owner.entry(plain(&share["owner"])).or_default();
            shares.push(share["share"].to_string());
            // RFC 3339 sorts by time.
            *since = plain(&share["since"]).max(since.clone());
        }
        for (owner, (shares, since)) in by_owner {
            let _ = match shares.len() {
                0 => write!(text, "\n  {owner} stands by"),
                _ => write!(text, "\n  {owner} owns {}, the last since {since}", shares.join(" ")),
            };
        }
        for silent in value["silent"].as_array().into_iter().flatten() {
            let (member, time) = (plain(&silent["member"]), span(&silent["seconds"]));
            let _ = write!(
                text,
                "\n  {ODD}{member} is silent:{ODD:#} killed, frozen or cut off; its leases ran out {time} ago"
            );
        }
        text
    })
}

fn paused(value: &Value) -> String {
    part(value, |value| {
        let pauses = value["pauses"].as_array().map(Vec::as_slice).unwrap_or_default();
        let lines = pauses.iter().map(|pause| {
            let what = match &pause["exchange"] {
                Value::Null => "everything".to_owned(),
                exchange => format!("exchange {:?}", plain(exchange)),
            };
            let (since, by, reason) = (plain(&pause["since"]), plain(&pause["by"]), plain(&pause["reason"]));
            format!("{ODD}{what}{ODD:#} since {since} by {by}: {reason}")
        });
        match pauses.len() {
            0 => "nothing".to_owned(),
            _ => lines.collect::<Vec<_>>().join("\n  "),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_part_that_cannot_be_had_says_why() {
        let text = text(&json!({ "backlog": { "ok": false, "reason": "no answer within 10s" } }));
        assert!(text.contains("no answer within 10s"), "{text}");
    }

    #[test]
    fn many_blocked_keys_leave_room_for_the_rest_which_has_no_configuration() {
        let keys: Vec<Value> = (0..25)
            .map(|row| json!({ "key": format!("k{row}"), "row": row, "why": "delayed", "due_in_seconds": 60 }))
            .collect();
        let report = json!({
            "blocked_keys": { "ok": true, "keys": keys, "more": false },
            "configuration": { "RELAY_LOG": "info" },
        });
        let text = text(&report);
        assert!(
            text.contains("25\n") && text.contains("\"k9\" waits") && text.contains("and 15 more"),
            "{text}"
        );
        assert!(!text.contains("\"k10\"") && text.lines().count() < 24, "{text}");
        assert!(!text.contains("RELAY_LOG") && configuration(&report).contains("RELAY_LOG=info"));
    }
}
