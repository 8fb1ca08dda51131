//! Values as the stores read and write them, whatever the database.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use sha2::{Digest, Sha256};
use uuid::Builder;

use super::{Failure, NextStep, Shares, StoreError};
use crate::broker::Confirmed;
use crate::message::{MessageId, RowId};

/// The longest wait a store reads or writes: `infinity` in the table, or a number beyond all calendars, is this.
pub(super) const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// The last second of the year 9999: no timestamp beyond it is a date.
const LAST_SECOND: f64 = 253_402_300_799.0;

/// What a database keeps of an error text, in characters.
const MAX_ERROR_CHARS: usize = 2_000;

/// The share, below `of`, that a row belongs to: by its key, or by its id where it has none.
///
/// The first byte of a SHA-256 is the same in every version of every database, unlike its own hash functions; MD5 is not to
/// be had everywhere (MySQL 9.6, PostgreSQL under FIPS). With `of` 1 to 256.
pub fn share_of(id: RowId, key: Option<&str>, of: u16) -> u16 {
    let digest = match key {
        Some(key) => Sha256::digest(key.as_bytes()),
        None => Sha256::digest(id.to_string().as_bytes()),
    };
    u16::from(digest[0]) % of.max(1)
}

impl Shares {
    /// Whether a row is among these.
    pub fn contain(&self, id: RowId, key: Option<&str>) -> bool {
        match self {
            Shares::All => true,
            Shares::Some { of, owned } => owned.contains(&share_of(id, key, *of)),
        }
    }
}

/// A span read from the database: never negative, never beyond [`FOREVER`], whatever stands there.
pub(super) fn span(seconds: Option<f64>) -> Duration {
    let seconds = seconds.unwrap_or(0.0);
    // NaN compares false as well: not a time, so no reason to wait.
    if seconds > 0.0 {
        Duration::from_secs_f64(seconds.min(FOREVER.as_secs_f64()))
    } else {
        Duration::ZERO
    }
}

/// A time as the span since 1970, in microseconds: what a float is sure to hold of it.
pub(super) fn since_1970(seconds: Option<f64>) -> Option<Duration> {
    let micros = (seconds?.clamp(0.0, LAST_SECOND) * 1e6).round();
    Some(Duration::from_micros(micros as u64))
}

/// Seconds since 1970 as AMQP can carry them.
pub(super) fn epoch(seconds: Option<f64>) -> i64 {
    // The cast of a NaN is 0.
    seconds.unwrap_or(0.0).clamp(0.0, LAST_SECOND) as i64
}

/// A span as seconds for a statement's argument, never so long that date arithmetic overflows.
pub(super) fn seconds(span: Duration) -> f64 {
    span.min(FOREVER).as_secs_f64()
}

/// A count or an attempt number; what is negative is none.
pub(super) fn count(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// The attempts of a row.
pub(super) fn attempts(number: i64) -> u32 {
    u32::try_from(number.max(0)).unwrap_or(u32::MAX)
}

/// The id of a row whose `message_id` is null or empty: the same on every copy, as it is made from what does not change.
pub(super) fn derived_message_id(source: &str) -> MessageId {
    let digest: [u8; 32] = Sha256::digest(source.as_bytes()).into();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    Builder::from_custom_bytes(bytes).into_uuid().into()
}

/// The columns of a page that are text, by their places; the last one is there only where columns are headers.
const TEXTS: &[(usize, &str)] = &[
    (1, "message_id"),
    (2, "exchange"),
    (3, "routing_key"),
    (4, "ordering_key"),
    (5, "type"),
    (6, "content_type"),
    (7, "headers"),
    (8, "properties"),
    (15, "headers"),
];

/// The first of a row's texts that is not UTF-8. A message made of it would go elsewhere, or under the id of another one.
pub(super) fn not_utf8<'row>(
    columns: usize,
    bytes: impl Fn(usize) -> Result<Option<&'row [u8]>, sqlx::Error>,
) -> Result<Option<&'static str>, sqlx::Error> {
    for (index, name) in TEXTS.iter().filter(|(index, _)| *index < columns) {
        if bytes(*index)?.is_some_and(|bytes| std::str::from_utf8(bytes).is_err()) {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// A text column. Databases can hold text that is not UTF-8, and one such row must not stop its whole page: see [`not_utf8`].
pub(super) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The headers of a row: its own, and beneath them those that are columns, without nulls. What is no JSON object (as SQLite
/// makes of an infinite number) stays as it is: the row will be refused for it.
pub(super) fn with_headers(own: Option<String>, columns: Option<String>) -> String {
    let own = own.unwrap_or_else(|| "{}".to_owned());
    let Some(columns) = columns else { return own };
    let Ok(Value::Object(mut all)) = serde_json::from_str(&columns) else {
        return columns;
    };
    let Ok(Value::Object(over)) = serde_json::from_str(&own) else {
        return own;
    };
    all.retain(|_, value| !value.is_null());
    all.extend(over);
    Value::Object(all).to_string()
}

/// Raw ids for a statement.
pub(super) fn raw(ids: &[RowId]) -> Vec<i64> {
    ids.iter().map(|id| id.0).collect()
}

/// Ids to be marked: sorted, so that two writers lock rows in the same order, and each once.
pub(super) fn sorted(rows: &[Confirmed]) -> Vec<i64> {
    let mut ids: Vec<i64> = rows.iter().map(|confirmed| confirmed.row().0).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// What is written of a failure.
#[derive(Debug, Default)]
pub(super) struct FailureColumns {
    pub(super) ids: Vec<i64>,
    pub(super) attempts: Vec<i32>,
    pub(super) errors: Vec<String>,
    /// Seconds until the next attempt; `None`: a dead letter.
    pub(super) delays: Vec<Option<f64>>,
    pub(super) shares: Vec<Option<i32>>,
    pub(super) epochs: Vec<Option<i64>>,
}

impl FailureColumns {
    /// In `id` order, the last word about each row.
    pub(super) fn of(failures: &[Failure]) -> Self {
        let by_id: BTreeMap<RowId, &Failure> = failures.iter().map(|failure| (failure.row, failure)).collect();
        let mut columns = Self::default();
        for (id, failure) in by_id {
            columns.ids.push(id.0);
            columns
                .attempts
                .push(i32::try_from(failure.attempts).unwrap_or(i32::MAX));
            columns.errors.push(storable(&failure.error));
            columns.delays.push(match failure.next {
                NextStep::RetryIn(delay) => Some(seconds(delay)),
                NextStep::Dead => None,
            });
            columns.shares.push(failure.lease.map(|lease| i32::from(lease.share)));
            columns.epochs.push(failure.lease.map(|lease| lease.epoch));
        }
        columns
    }
}

/// PostgreSQL refuses a NUL in a text, and with it the whole statement.
fn storable(error: &str) -> String {
    error.chars().filter(|c| *c != '\0').take(MAX_ERROR_CHARS).collect()
}

/// Every row as what it says.
pub(super) fn decode<R, T>(rows: &[R], one: impl Fn(&R) -> Result<T, sqlx::Error>) -> Result<Vec<T>, StoreError> {
    rows.iter()
        .map(one)
        .collect::<Result<_, _>>()
        .map_err(|error| unreadable(&error))
}

/// The only row.
pub(super) fn decode_one<R, T>(rows: &[R], one: impl Fn(&R) -> Result<T, sqlx::Error>) -> Result<T, StoreError> {
    rows.first()
        .ok_or(sqlx::Error::RowNotFound)
        .and_then(one)
        .map_err(|error| unreadable(&error))
}

/// The error for a value that the driver could not give.
pub(super) fn unreadable(error: &sqlx::Error) -> StoreError {
    match error {
        // The source may quote the value.
        sqlx::Error::ColumnDecode { index, .. } => StoreError::Failed(format!("column {index} cannot be read")),
        _ => StoreError::Failed("a row cannot be read".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_that_cannot_be_read_do_not_vanish() {
        let headers = |own: &str, columns: &str| with_headers(Some(own.to_owned()), Some(columns.to_owned()));
        assert_eq!(
            headers("{\"a\":1}", "{\"a\":2,\"b\":null,\"c\":3}"),
            "{\"a\":1,\"c\":3}"
        );
        assert_eq!(headers("{}", "[9]"), "[9]");
        // Numbers pass as they are written, so that what AMQP cannot carry is refused and not changed.
        let beyond = "{\"a\":9e+999,\"b\":18446744073709551617}";
        assert_eq!(headers(beyond, "{}"), beyond);
        assert_eq!(headers("{}", beyond), beyond);
        assert_eq!(headers("[]", "{}"), "[]");
    }

    #[test]
    fn spans_and_dates_survive_any_number() {
        assert_eq!(span(Some(-1.0)), Duration::ZERO);
        assert_eq!(span(Some(f64::NAN)), Duration::ZERO);
        assert_eq!(span(Some(f64::INFINITY)), FOREVER);
        assert_eq!(span(Some(1.5)), Duration::from_millis(1_500));
        assert_eq!(epoch(Some(f64::NEG_INFINITY)), 0);
        assert_eq!(epoch(Some(f64::INFINITY)), 253_402_300_799);
        assert_eq!(epoch(Some(1_700_000_000.9)), 1_700_000_000);
        assert_eq!(since_1970(Some(f64::NAN)), Some(Duration::ZERO));
        assert_eq!(
            since_1970(Some(253_402_300_800.0)),
            Some(Duration::from_secs(253_402_300_799))
        );
        assert_eq!(
            since_1970(Some(1_700_000_000.123_456)),
            Some(Duration::from_micros(1_700_000_000_123_456))
        );
    }

    #[test]
    fn shares_split_keys_and_keyless_rows() {
        // SHA-256 of "a" begins with ca, of "7" with 79.
        assert_eq!(share_of(RowId(7), Some("a"), 16), 0x0a);
        assert_eq!(share_of(RowId(7), None, 16), 0x09);
        assert_eq!(share_of(RowId(7), None, 1), 0);
        let mine = Shares::Some {
            of: 16,
            owned: vec![10],
        };
        assert!(mine.contain(RowId(7), Some("a")) && !mine.contain(RowId(7), None));
    }

    #[test]
    fn header_columns_are_beneath_the_headers_of_the_row() {
        let text = |text: &str| Some(text.to_owned());
        let columns = r#"{"a": 1, "b": "x", "c": null}"#;
        assert_eq!(with_headers(None, None), "{}");
        assert_eq!(with_headers(text("[]"), text(columns)), "[]");
        assert_eq!(with_headers(text(r#"{"a":[]}"#), text(columns)), r#"{"a":[],"b":"x"}"#);
        assert_eq!(with_headers(None, text(columns)), r#"{"a":1,"b":"x"}"#);
    }

    #[test]
    fn an_error_is_cut_and_loses_its_nuls_and_the_last_word_counts() {
        let failure = |error: String, next| Failure {
            row: RowId(1),
            attempts: u32::MAX,
            error,
            next,
            lease: None,
        };
        let columns = FailureColumns::of(&[
            failure("first".to_owned(), NextStep::Dead),
            failure(format!("\0{}", "é".repeat(3_000)), NextStep::RetryIn(Duration::MAX)),
        ]);
        assert_eq!(columns.ids, [1]);
        assert_eq!(columns.attempts, [i32::MAX]);
        assert_eq!(columns.errors[0].chars().count(), MAX_ERROR_CHARS);
        assert!(columns.delays[0].is_some_and(|delay| delay.is_finite()));
    }
}
