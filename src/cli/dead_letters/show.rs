//! Dead letters as text and JSON. Their bodies are shown only where they are asked for.

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::cli::text::{plain, print, steerless};
use crate::message::RowId;
use crate::store::operator::{DeadFilter, DeadLetter, PastError};
use crate::store::{Operator, StoreError};

/// Longer errors are cut in the list; `show` has all of it.
const ERROR_CHARS: usize = 80;

/// Rows asked for at a time.
const PAGE: u32 = 1_000;

pub(super) async fn list(
    operator: &dyn Operator,
    filter: &DeadFilter,
    limit: u32,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let mut found: Vec<DeadLetter> = Vec::new();
    let mut after = RowId(i64::MIN);
    // One more than is shown, to know whether there are more.
    let wanted = limit as usize + 1;
    while found.len() < wanted {
        let page = PAGE.min(u32::try_from(wanted - found.len()).unwrap_or(PAGE));
        let letters = operator.dead_letters(filter, after, page).await?;
        let complete = letters.len() < page as usize;
        after = letters.last().map_or(after, |letter| letter.id);
        found.extend(letters);
        if complete {
            break;
        }
    }
    let more = found.len() == wanted;
    found.truncate(limit as usize);
    if json {
        let letters: Vec<Value> = found.iter().map(as_json).collect();
        print(&format!("{:#}\n", Value::from(letters)));
    } else {
        print(&table(&found));
    }
    if more {
        eprintln!("outbox-relay: there are more: raise --limit");
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn show(operator: &dyn Operator, id: RowId, with_body: bool, json: bool) -> anyhow::Result<ExitCode> {
    let filter = DeadFilter {
        ids: vec![id],
        ..DeadFilter::default()
    };
    let Some(letter) = operator
        .dead_letters(&filter, RowId(i64::MIN), 1)
        .await?
        .into_iter()
        .next()
    else {
        anyhow::bail!("row {id} is no dead letter: see `dead-letters list`");
    };
    let body = match with_body {
        true => operator.dead_payload(id).await?,
        false => None,
    };
    let errors = past_errors(operator, id).await?;
    let mut value = as_json(&letter);
    value["errors"] = errors.as_deref().map_or(Value::Null, errors_as_json);
    if let Some(body) = &body {
        // Bytes that are no text are replaced: the table has them.
        value["payload"] = String::from_utf8_lossy(body).into();
    }
    if json {
        print(&format!("{value:#}\n"));
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = String::new();
    for (name, value) in value.as_object().into_iter().flatten() {
        if name != "payload" && name != "errors" && !value.is_null() {
            let _ = writeln!(text, "{name:14} {}", plain(value));
        }
    }
    for (number, PastError { at, attempt, error }) in errors.iter().flatten().enumerate() {
        let name = if number == 0 { "errors" } else { "" };
        let error = plain(&error.as_str().into());
        let _ = writeln!(text, "{name:14} {}  attempt {attempt}  {error}", time(*at));
    }
    if let Some(body) = body {
        text.push('\n');
        let body = String::from_utf8_lossy(&body);
        match std::io::stdout().is_terminal() {
            true => text.push_str(&steerless(&body)),
            false => text.push_str(&body),
        }
        text.push('\n');
    }
    print(&text);
    Ok(ExitCode::SUCCESS)
}

/// The newest first; `None`, with the reason for a person, where they are not kept.
async fn past_errors(operator: &dyn Operator, id: RowId) -> anyhow::Result<Option<Vec<PastError>>> {
    match operator.past_errors(id).await {
        Ok(errors) => Ok(Some(errors)),
        Err(error @ (StoreError::SchemaMissing(_) | StoreError::Denied(_))) => {
            eprintln!("outbox-relay: the errors of earlier attempts are not kept: {error}");
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

fn errors_as_json(errors: &[PastError]) -> Value {
    let errors = errors
        .iter()
        .map(|past| json!({ "at": time(past.at), "attempt": past.attempt, "error": past.error }));
    errors.collect()
}

fn as_json(letter: &DeadLetter) -> Value {
    json!({
        "id": letter.id.0,
        "message_id": letter.message_id.as_ref().map(ToString::to_string),
        "exchange": letter.exchange,
        "routing_key": letter.routing_key,
        "ordering_key": letter.ordering_key,
        "type": letter.kind,
        "content_type": letter.content_type,
        "headers": letter.headers.as_deref().map(parsed),
        "properties": letter.properties.as_deref().map(parsed),
        "payload_bytes": letter.payload_bytes,
        "attempts": letter.attempts,
        "last_error": letter.last_error,
        "created_at": time(letter.created_at),
        "dead_at": time(letter.dead_at),
    })
}

/// What stands in the column, as JSON where it is that.
fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| text.into())
}

fn table(letters: &[DeadLetter]) -> String {
    if letters.is_empty() {
        return "no dead letters\n".to_owned();
    }
    let mut text = format!(
        "{:>12}  {:20}  {:>3}  {:24}  {:24}  error\n",
        "id", "given up", "try", "routing key", "key"
    );
    for letter in letters {
        let error: String = letter
            .last_error
            .iter()
            .flat_map(|text| text.chars())
            .take(ERROR_CHARS)
            .collect();
        let key = letter.ordering_key.as_deref().map_or(Value::Null, Value::from);
        let _ = writeln!(
            text,
            "{:>12}  {:20}  {:>3}  {:24}  {:24}  {}",
            letter.id.0,
            time(letter.dead_at),
            letter.attempts,
            plain(&letter.routing_key.as_str().into()),
            plain(&key),
            plain(&error.into())
        );
    }
    text
}

/// Seconds since 1970 as RFC 3339, to the second; nothing beyond the year 9999.
fn time(seconds: f64) -> String {
    let span = Duration::from_secs(seconds.clamp(0.0, 253_402_300_799.0) as u64);
    humantime::format_rfc3339_seconds(SystemTime::UNIX_EPOCH + span).to_string()
}
