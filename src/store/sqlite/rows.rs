//! From SQLite's values, each of whatever type it was written with, to the relay's types.

use sqlx::sqlite::SqliteRow;
use sqlx::{Row as _, TypeInfo as _, ValueRef as _};
use uuid::Uuid;

use crate::message::{MessageId, OrderingKey, OutboxRow, Payload, RowId};
use crate::store::leases::LeaseRow;
use crate::store::purge::Window;
use crate::store::values::{self, attempts, count, derived_message_id, epoch, since_1970, span, with_headers};
use crate::store::{BACKLOG_CAP, Backlog, Stub};

/// A row of a page.
pub(super) fn outbox_row(row: &SqliteRow, table: &str) -> Result<OutboxRow, sqlx::Error> {
    let id: i64 = row.try_get(0)?;
    let created = number(row, 9)?.map(to_the_millisecond);
    // A row without a time of its own is as old as the epoch only on paper.
    let age = if created.is_some() { number(row, 10)? } else { None };
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
        age: span(age),
        due_in: span(number(row, 11)?),
        attempts: attempts(row.try_get(12)?),
        not_utf8: values::not_utf8(row.len(), |index| match index {
            1 if is_uuid(row)? => Ok(None),
            _ => bytes(row, index),
        })?,
    })
}

/// Dates are days with a fraction to SQLite, milliseconds at best: they come out some microseconds off.
pub(super) fn to_the_millisecond(seconds: f64) -> f64 {
    (seconds * 1e3).round() / 1e3
}

/// A UUID as its 16 bytes, or any text that is not empty.
pub(super) fn message_id(row: &SqliteRow, fallback: &str) -> Result<MessageId, sqlx::Error> {
    let is_uuid = is_uuid(row)?;
    Ok(match bytes(row, 1)? {
        None | Some([]) => derived_message_id(fallback),
        Some(bytes) => match Uuid::from_slice(bytes) {
            Ok(uuid) if is_uuid => uuid.into(),
            _ => MessageId::new(&values::text(bytes)),
        },
    })
}

fn is_uuid(row: &SqliteRow) -> Result<bool, sqlx::Error> {
    let is_blob = row.try_get_raw(1)?.type_info().name() == "BLOB";
    Ok(is_blob && bytes(row, 1)?.is_some_and(|bytes| bytes.len() == 16))
}

/// The headers that are columns, which stand behind all others where there are any.
pub(super) fn header_columns(row: &SqliteRow, index: usize) -> Result<Option<String>, sqlx::Error> {
    if row.len() > index { text(row, index) } else { Ok(None) }
}

/// The bytes of the text or the blob. A null payload has no size.
fn payload(row: &SqliteRow) -> Result<Payload, sqlx::Error> {
    let Some(size) = row.try_get::<Option<i64>, _>(13)? else {
        return Ok(Payload::Missing);
    };
    Ok(match bytes(row, 14)? {
        Some(bytes) => Payload::Loaded(bytes.to_vec()),
        None => Payload::Left(count(size)),
    })
}

/// A text column.
pub(super) fn text(row: &SqliteRow, index: usize) -> Result<Option<String>, sqlx::Error> {
    Ok(bytes(row, index)?.map(values::text))
}

/// Text or blob alike.
pub(super) fn bytes(row: &SqliteRow, index: usize) -> Result<Option<&[u8]>, sqlx::Error> {
    row.try_get_unchecked(index)
}

/// Integer or real alike: SQLite converts.
pub(super) fn number(row: &SqliteRow, index: usize) -> Result<Option<f64>, sqlx::Error> {
    row.try_get_unchecked(index)
}

/// An id with its key.
pub(super) fn id_and_key(row: &SqliteRow) -> Result<(RowId, Option<String>), sqlx::Error> {
    Ok((RowId(row.try_get(0)?), text(row, 1)?))
}

/// A row of the answer about leases.
pub(super) fn lease(row: &SqliteRow) -> Result<LeaseRow, sqlx::Error> {
    Ok((
        row.try_get(0)?,
        row.try_get(1)?,
        row.try_get(2)?,
        row.try_get(3)?,
        row.try_get(4)?,
    ))
}

/// A row of a scan.
pub(super) fn stub(row: &SqliteRow) -> Result<Stub, sqlx::Error> {
    let (id, key) = id_and_key(row)?;
    Ok(Stub {
        id,
        ordering_key: key.map(|key| OrderingKey::new(&key)),
        due_in: span(number(row, 2)?),
        exchange: text(row, 3)?,
    })
}

/// A row of a probe: the stub, and whether it is unsent.
pub(super) fn probed(row: &SqliteRow) -> Result<(Stub, bool), sqlx::Error> {
    Ok((stub(row)?, row.try_get(4)?))
}

/// A key with its lowest dead letter.
pub(super) fn dead_key(row: &SqliteRow) -> Result<(OrderingKey, RowId), sqlx::Error> {
    Ok((
        OrderingKey::new(&text(row, 0)?.unwrap_or_default()),
        RowId(row.try_get(1)?),
    ))
}

/// The one row of a purge's look, with the ids that are old enough, in order.
pub(super) fn window(row: &SqliteRow) -> Result<(Window, Vec<i64>), sqlx::Error> {
    let old: String = row.try_get(3)?;
    let mut old: Vec<i64> = serde_json::from_str(&old).map_err(|error| sqlx::Error::Decode(error.into()))?;
    old.sort_unstable();
    let window = Window {
        seen: count(row.try_get(0)?),
        last: row.try_get(1)?,
        young: count(row.try_get(2)?),
        deleted: 0,
        last_deleted: None,
    };
    Ok((window, old))
}

/// The one row of a backlog.
pub(super) fn backlog(row: &SqliteRow) -> Result<Backlog, sqlx::Error> {
    let (pending, retrying, dead) = (count(row.try_get(0)?), count(row.try_get(1)?), count(row.try_get(3)?));
    let oldest = number(row, 2)?;
    let cap = u64::from(BACKLOG_CAP);
    Ok(Backlog {
        pending,
        retrying,
        dead,
        oldest_age: oldest.map(|age| span(Some(age))),
        capped: pending + retrying >= cap || dead >= cap,
    })
}
