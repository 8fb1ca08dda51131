//! From rows in PostgreSQL's binary protocol to the relay's types.

use sqlx::postgres::PgRow;
use sqlx::{Row as _, TypeInfo as _, ValueRef as _};
use uuid::Uuid;

use crate::message::{MessageId, OrderingKey, OutboxRow, Payload, RowId};
use crate::store::leases::LeaseRow;
use crate::store::purge::Window;
use crate::store::values::{self, attempts, count, derived_message_id, epoch, since_1970, span, with_headers};
use crate::store::{BACKLOG_CAP, Backlog, OpenTransactions, Probe, Stub};

/// Before the text of a `jsonb` stands the version of its format.
const JSONB_VERSION_BYTES: usize = 1;

/// A row of a page.
pub(super) fn outbox_row(row: &PgRow, table: &str) -> Result<OutboxRow, sqlx::Error> {
    let id: i64 = row.try_get(0)?;
    let created: Option<f64> = row.try_get(9)?;
    Ok(OutboxRow {
        id: RowId(id),
        message_id: message_id(row)?.unwrap_or_else(|| derived_message_id(&format!("{table}:{id}:{}", epoch(created)))),
        exchange: text(row, 2)?,
        routing_key: text(row, 3)?.unwrap_or_default(),
        ordering_key: text(row, 4)?.map(|key| OrderingKey::new(&key)),
        kind: text(row, 5)?,
        content_type: text(row, 6)?.unwrap_or_else(|| "application/json".to_owned()),
        headers: with_headers(text(row, 7)?, header_columns(row, 15)?),
        properties: text(row, 8)?.unwrap_or_else(|| "{}".to_owned()),
        payload: payload(row)?,
        created_at: since_1970(created),
        age: span(row.try_get(10)?),
        due_in: span(row.try_get(11)?),
        attempts: attempts(row.try_get(12)?),
        not_utf8: values::not_utf8(row.len(), |index| match index {
            1 if is_uuid(row)? => Ok(None),
            _ => bytes(row, index),
        })?,
    })
}

/// A UUID, or any text that is not empty.
pub(super) fn message_id(row: &PgRow) -> Result<Option<MessageId>, sqlx::Error> {
    if is_uuid(row)? {
        return Ok(row.try_get::<Option<Uuid>, _>(1)?.map(MessageId::from));
    }
    Ok(text(row, 1)?.filter(|id| !id.is_empty()).map(|id| MessageId::new(&id)))
}

fn is_uuid(row: &PgRow) -> Result<bool, sqlx::Error> {
    Ok(row.try_get_raw(1)?.type_info().name() == "UUID")
}

/// The headers that are columns, which stand behind all others where there are any.
pub(super) fn header_columns(row: &PgRow, index: usize) -> Result<Option<String>, sqlx::Error> {
    if row.len() > index { text(row, index) } else { Ok(None) }
}

/// The bytes as they came. A null payload has no size.
fn payload(row: &PgRow) -> Result<Payload, sqlx::Error> {
    let Some(size) = row.try_get::<Option<i64>, _>(13)? else {
        return Ok(Payload::Missing);
    };
    let value = row.try_get_raw(14)?;
    if value.is_null() {
        return Ok(Payload::Left(count(size)));
    }
    let skip = if value.type_info().name() == "JSONB" {
        JSONB_VERSION_BYTES
    } else {
        0
    };
    let bytes = value.as_bytes().map_err(sqlx::Error::Decode)?;
    Ok(Payload::Loaded(bytes.get(skip..).unwrap_or_default().to_vec()))
}

/// A text column.
pub(super) fn text(row: &PgRow, index: usize) -> Result<Option<String>, sqlx::Error> {
    Ok(bytes(row, index)?.map(values::text))
}

/// As they came.
fn bytes(row: &PgRow, index: usize) -> Result<Option<&[u8]>, sqlx::Error> {
    let value = row.try_get_raw(index)?;
    if value.is_null() {
        return Ok(None);
    }
    value.as_bytes().map(Some).map_err(sqlx::Error::Decode)
}

/// A row of a scan.
pub(super) fn stub(row: &PgRow) -> Result<Stub, sqlx::Error> {
    stub_at(row, 0)
}

fn stub_at(row: &PgRow, first: usize) -> Result<Stub, sqlx::Error> {
    Ok(Stub {
        id: RowId(row.try_get(first)?),
        ordering_key: text(row, first + 1)?.map(|key| OrderingKey::new(&key)),
        due_in: span(row.try_get(first + 2)?),
        exchange: text(row, first + 3)?,
    })
}

/// The rows of a probe: at least one, whose row part may be null.
pub(super) fn probe(rows: &[PgRow]) -> Result<Probe, sqlx::Error> {
    let first = rows.first().ok_or(sqlx::Error::RowNotFound)?;
    let open = OpenTransactions {
        oldest: count(first.try_get(0)?),
        next: count(first.try_get(1)?),
    };
    let mut probe = Probe {
        present: Vec::new(),
        unsent: Vec::new(),
        open,
    };
    for row in rows {
        let Some(id) = row.try_get(2)? else { continue };
        probe.present.push(RowId(id));
        if row.try_get::<Option<bool>, _>(6)? == Some(true) {
            probe.unsent.push(stub_at(row, 2)?);
        }
    }
    Ok(probe)
}

/// A row of the answer about leases; it comes as text, as scripts are answered.
pub(super) fn lease(row: &PgRow) -> Result<LeaseRow, sqlx::Error> {
    Ok((
        row.try_get(0)?,
        i64::from(row.try_get::<i32, _>(1)?),
        row.try_get(2)?,
        row.try_get(3)?,
        row.try_get(4)?,
    ))
}

/// A key with its lowest dead letter.
pub(super) fn dead_key(row: &PgRow) -> Result<(OrderingKey, RowId), sqlx::Error> {
    let key = text(row, 0)?.unwrap_or_default();
    Ok((OrderingKey::new(&key), RowId(row.try_get(1)?)))
}

/// The one row of a purge.
pub(super) fn window(row: &PgRow) -> Result<Window, sqlx::Error> {
    Ok(Window {
        seen: count(row.try_get(0)?),
        last: row.try_get(1)?,
        young: count(row.try_get(2)?),
        deleted: count(row.try_get(3)?),
        last_deleted: row.try_get(4)?,
    })
}

/// The one row of a backlog.
pub(super) fn backlog(row: &PgRow) -> Result<Backlog, sqlx::Error> {
    let (pending, retrying) = (count(row.try_get(0)?), count(row.try_get(1)?));
    let oldest: Option<f64> = row.try_get(2)?;
    let dead = count(row.try_get(3)?);
    let cap = u64::from(BACKLOG_CAP);
    Ok(Backlog {
        pending,
        retrying,
        dead,
        oldest_age: oldest.map(|age| span(Some(age))),
        capped: pending + retrying >= cap || dead >= cap,
    })
}
