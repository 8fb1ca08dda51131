//! From rows of whatever database to what they say: each names the columns in the order of its statements.

use super::{DeadLetter, Route, SentRow, WaitingKey};
use crate::message::{MessageId, OrderingKey, RowId};
use crate::store::leases::OwnershipRow;
use crate::store::values::{attempts, count, span, with_headers};

/// The values of a row, by the number of their column.
pub(in crate::store) trait Cells {
    /// Text, however it is encoded.
    fn text(&self, index: usize) -> Result<Option<String>, sqlx::Error>;

    /// An integer of any size.
    fn integer(&self, index: usize) -> Result<Option<i64>, sqlx::Error>;

    /// A double, mostly of seconds.
    fn double(&self, index: usize) -> Result<Option<f64>, sqlx::Error>;

    /// How many columns there are.
    fn width(&self) -> usize;

    /// Text that is never null.
    fn word(&self, index: usize) -> Result<String, sqlx::Error> {
        Ok(self.text(index)?.unwrap_or_default())
    }

    /// An integer that is never null.
    fn number(&self, index: usize) -> Result<i64, sqlx::Error> {
        Ok(self.integer(index)?.unwrap_or_default())
    }
}

/// A row that was given up: id, message id (which only its database can read, column 1), exchange, routing key, ordering
/// key, type, content type, headers, properties, bytes of the body, attempts, last error, and in seconds since 1970 when
/// it was created and given up; then the headers that are columns, if there are any.
pub(in crate::store) fn dead_letter(
    row: &impl Cells,
    message_id: Option<MessageId>,
) -> Result<DeadLetter, sqlx::Error> {
    Ok(DeadLetter {
        id: RowId(row.number(0)?),
        message_id,
        exchange: row.text(2)?,
        routing_key: row.word(3)?,
        ordering_key: row.text(4)?,
        kind: row.text(5)?,
        content_type: row.text(6)?,
        headers: match row.width() {
            ..=14 => row.text(7)?,
            _ => Some(with_headers(row.text(7)?, row.text(14)?)),
        },
        properties: row.text(8)?,
        payload_bytes: row.integer(9)?.map(count),
        attempts: attempts(row.number(10)?),
        last_error: row.text(11)?,
        created_at: row.double(12)?.unwrap_or_default(),
        dead_at: row.double(13)?.unwrap_or_default(),
    })
}

/// Key, id of its row, attempts, seconds to wait, last error, seconds since it was created.
pub(in crate::store) fn waiting_key(row: &impl Cells) -> Result<WaitingKey, sqlx::Error> {
    Ok(WaitingKey {
        key: OrderingKey::new(&row.word(0)?),
        row: RowId(row.number(1)?),
        attempts: attempts(row.number(2)?),
        due_in: span(row.double(3)?),
        last_error: row.text(4)?,
        age: row.double(5)?.map(|age| span(Some(age))),
    })
}

/// Exchange, routing key, and how many rows.
pub(in crate::store) fn route(row: &impl Cells) -> Result<Route, sqlx::Error> {
    Ok(Route {
        exchange: row.text(0)?,
        routing_key: row.word(1)?,
        rows: count(row.number(2)?),
    })
}

/// Id, whether it is a sent row that is wanted, and whether it has a key; both as numbers.
pub(in crate::store) fn sent_row(row: &impl Cells) -> Result<SentRow, sqlx::Error> {
    Ok(SentRow {
        id: RowId(row.number(0)?),
        wanted: row.number(1)? != 0,
        keyed: row.number(2)? != 0,
    })
}

/// A text, and how often: a reason, or a key.
pub(in crate::store) fn counted(row: &impl Cells) -> Result<(String, u64), sqlx::Error> {
    Ok((row.word(0)?, count(row.number(1)?)))
}

/// See [`crate::store::leases::ownership`].
pub(in crate::store) fn owner(row: &impl Cells) -> Result<OwnershipRow, sqlx::Error> {
    Ok((
        row.word(0)?,
        row.number(1)?,
        row.number(2)?,
        row.word(3)?,
        row.double(4)?.unwrap_or_default(),
        row.double(5)?.unwrap_or_default(),
    ))
}
