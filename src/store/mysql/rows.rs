//! From rows in MySQL's protocol to the relay's types.
//!
//! Texts are taken as the bytes that came: the driver's check of types knows neither MariaDB's `uuid` nor its `json`.

use sqlx::Row as _;
use sqlx::mysql::MySqlRow;
use std::time::Duration;

use crate::message::{MessageId, OrderingKey, OutboxRow, Payload, RowId};
use crate::store::leases::LeaseRow;
use crate::store::purge::Window;
use crate::store::values::{self, attempts, count, decode, derived_message_id, epoch, since_1970, span, with_headers};
use crate::store::{BACKLOG_CAP, Backlog, StoreError, Stub};

/// A row of a page.
pub(super) fn outbox_row(row: &MySqlRow, table: &str) -> Result<OutboxRow, sqlx::Error> {
    let id: i64 = row.try_get(0)?;
    let created = seconds(row, 9)?;
    Ok(OutboxRow {
        id: RowId(id),
        message_id: message_id(row, &format!("{table}:{id}:{}", epoch(created)))?,
        exchange: text(row, 2)?,
        routing_key: text(row, 3)?.unwrap_or_default(),
        ordering_key: text(row, 4)?.map(|key| OrderingKey::new(&key)),
        kind: text(row, 5)?,
        content_type: text(row, 6)?.unwrap_or_else(|| "application/json".to_owned()),
        headers: with_headers(text(row, 7)?, header_columns(row, 15)?),
        properties: text(row, 8)?.unwrap_or_else(|| "{}".to_owned()),
        payload: payload(row)?,
        created_at: since_1970(created),
        age: span(seconds(row, 10)?),
        due_in: wait(row, 11)?,
        attempts: attempts(row.try_get(12)?),
        not_utf8: values::not_utf8(row.len(), |index| bytes(row, index))?,
    })
}

/// Any text that is not empty.
pub(super) fn message_id(row: &MySqlRow, fallback: &str) -> Result<MessageId, sqlx::Error> {
    Ok(match bytes(row, 1)? {
        None | Some([]) => derived_message_id(fallback),
        Some(bytes) => MessageId::new(&values::text(bytes)),
    })
}

/// The headers that are columns, which stand behind all others where there are any.
pub(super) fn header_columns(row: &MySqlRow, index: usize) -> Result<Option<String>, sqlx::Error> {
    if row.len() > index { text(row, index) } else { Ok(None) }
}

/// The bytes as they came. A null payload has no size.
fn payload(row: &MySqlRow) -> Result<Payload, sqlx::Error> {
    let Some(size) = row.try_get::<Option<i64>, _>(13)? else {
        return Ok(Payload::Missing);
    };
    Ok(match bytes(row, 14)? {
        Some(bytes) => Payload::Loaded(bytes.to_vec()),
        None => Payload::Left(count(size)),
    })
}

/// Text or blob alike.
pub(super) fn bytes(row: &MySqlRow, index: usize) -> Result<Option<&[u8]>, sqlx::Error> {
    row.try_get_unchecked(index)
}

/// A text column.
pub(super) fn text(row: &MySqlRow, index: usize) -> Result<Option<String>, sqlx::Error> {
    Ok(bytes(row, index)?.map(values::text))
}

/// A text that is there.
pub(super) fn word(row: &MySqlRow, index: usize) -> Result<String, sqlx::Error> {
    Ok(text(row, index)?.unwrap_or_default())
}

/// The only column.
pub(super) fn name(row: &MySqlRow) -> Result<String, sqlx::Error> {
    word(row, 0)
}

/// Microseconds in the answer.
fn seconds(row: &MySqlRow, index: usize) -> Result<Option<f64>, sqlx::Error> {
    let micros: Option<i64> = row.try_get(index)?;
    Ok(micros.map(|micros| micros as f64 / 1e6))
}

/// A span of time that is never negative.
fn wait(row: &MySqlRow, index: usize) -> Result<Duration, sqlx::Error> {
    Ok(span(seconds(row, index)?))
}

/// A row of a scan.
pub(super) fn stub(row: &MySqlRow) -> Result<Stub, sqlx::Error> {
    Ok(Stub {
        id: RowId(row.try_get(0)?),
        ordering_key: text(row, 1)?.map(|key| OrderingKey::new(&key)),
        due_in: wait(row, 2)?,
        exchange: text(row, 3)?,
    })
}

/// A row of a probe: the stub, and whether it is unsent.
pub(super) fn probed(row: &MySqlRow) -> Result<(Stub, bool), sqlx::Error> {
    Ok((stub(row)?, row.try_get::<i64, _>(4)? != 0))
}

/// A row of the answer about leases; it comes as text, as scripts are answered.
pub(super) fn lease(row: &MySqlRow) -> Result<LeaseRow, sqlx::Error> {
    Ok((
        word(row, 0)?,
        row.try_get(1)?,
        text(row, 2)?,
        row.try_get(3)?,
        row.try_get(4)?,
    ))
}

/// A key with its lowest dead letter.
pub(super) fn dead_key(row: &MySqlRow) -> Result<(OrderingKey, RowId), sqlx::Error> {
    Ok((OrderingKey::new(&word(row, 0)?), RowId(row.try_get(1)?)))
}

/// The rows of a purge's look (id, whether it is unsent, sent too recently or old enough), with the ids that are old enough.
pub(super) fn window(rows: &[MySqlRow]) -> Result<(Window, Vec<i64>), StoreError> {
    let seen = decode(rows, |row| {
        Ok((row.try_get::<i64, _>(0)?, row.try_get::<Option<i64>, _>(1)?))
    })?;
    let old = |(id, old): &(i64, Option<i64>)| (*old == Some(1)).then_some(*id);
    let window = Window {
        seen: seen.len() as u64,
        last: seen.last().map(|(id, _)| *id),
        young: seen.iter().filter(|(_, old)| *old == Some(0)).count() as u64,
        deleted: 0,
        last_deleted: None,
    };
    Ok((window, seen.iter().filter_map(old).collect()))
}

/// The one row of a backlog.
pub(super) fn backlog(row: &MySqlRow) -> Result<Backlog, sqlx::Error> {
    let (pending, retrying, dead) = (count(row.try_get(0)?), count(row.try_get(1)?), count(row.try_get(3)?));
    let oldest = seconds(row, 2)?;
    let cap = u64::from(BACKLOG_CAP);
    Ok(Backlog {
        pending,
        retrying,
        dead,
        oldest_age: oldest.map(|age| span(Some(age))),
        capped: pending + retrying >= cap || dead >= cap,
    })
}
