//! Leases on shares, the same SQL for every database.
//!
//! One call is one script, sent whole and run by the server as one transaction under a lock: whoever holds the lock needs
//! nothing more from its client, so that a relay that is frozen in the middle cannot stop the others. Each statement
//! sees what the one before it did, and nobody else writes in between: what is decided from counts is exact.

use std::time::Duration;

use crate::config::TableName;

use super::columns::missing;
use super::migrate::{literal, quoted};
use super::operator::{Member, OwnedShare, Ownership};
use super::values::span;
use super::{LeaseAsk, LeaseView, ShareLease, StoreError};

const SHARES: &str = "outbox_relay_shares";
const MEMBERS: &str = "outbox_relay_members";

/// Seconds after which a relay that is gone is forgotten.
const FORGET_MEMBERS: u32 = 60;

/// What differs between databases.
pub(super) struct Dialect {
    /// Seconds since 1970 now, as a number with fractions.
    pub(super) now: &'static str,
    /// Makes scripts on this outbox wait for each other.
    pub(super) begin: String,
    pub(super) end: &'static str,
    /// Behind an INSERT of shares: those that are there stay as they are.
    pub(super) or_leave: &'static str,
    /// Behind an INSERT of a member, before what is to be set if it is there.
    pub(super) or_set: &'static str,
    /// Divides whole numbers.
    pub(super) div: &'static str,
    pub(super) take: Take,
}

/// How a number of rows is taken that the statement itself counts.
#[derive(Clone, Copy)]
pub(super) enum Take {
    /// By a LIMIT that is counted.
    ByLimit,
    /// MySQL: an UPDATE cannot count in the table it changes, nor limit a subquery. The number goes by way of a variable
    /// of the session, and the free shares are numbered in a derived table.
    ByNumber,
}

/// One row of the answer: `share`, number, owner, epoch, seconds left; or `member`, 0, name, 0, seconds left.
pub(super) type LeaseRow = (String, i64, Option<String>, i64, f64);

pub(super) fn shares_table(table: &TableName) -> String {
    in_schema_of(table, SHARES)
}

pub(super) fn members_table(table: &TableName) -> String {
    in_schema_of(table, MEMBERS)
}

fn in_schema_of(table: &TableName, name: &str) -> String {
    match table.schema() {
        Some(schema) => format!("{}.{}", quoted(schema), quoted(name)),
        None => quoted(name),
    }
}

/// The script of one call.
pub(super) fn script(table: &TableName, ask: &LeaseAsk, dialect: &Dialect) -> String {
    let text = Text {
        shares: shares_table(table),
        members: members_table(table),
        outbox: literal(table.name()),
        member: literal(&ask.member),
        layout: ask.partitions,
        ttl: ask.ttl.as_secs_f64(),
        dialect,
        now: dialect.now,
    };
    let mut statements = vec![dialect.begin.clone(), text.rows()];
    if ask.leaving {
        statements.extend([text.give_all(), text.leave()]);
    } else {
        statements.extend([text.join(), text.forget(), text.renew()]);
        if !ask.give.is_empty() {
            statements.push(text.give(&ask.give));
        }
        statements.push(text.end_other_layouts());
        statements.extend(text.take());
    }
    statements.extend([text.view(), dialect.end.to_owned()]);
    statements.retain(|statement| !statement.is_empty());
    statements.join(";\n")
}

/// The script of a relay that comes, which takes back all that it did.
pub(super) fn rehearsal(table: &TableName, partitions: u16, dialect: Dialect) -> String {
    let ask = LeaseAsk {
        member: "check".to_owned(),
        partitions,
        ttl: Duration::from_secs(1),
        give: vec![0],
        leaving: false,
    };
    let dialect = Dialect {
        end: "ROLLBACK",
        ..dialect
    };
    script(table, &ask, &dialect)
}

/// Counts the free shares of this layout. A whole text without arguments, the same at every call, so that it stays prepared.
pub(super) fn free(table: &TableName, partitions: u16, dialect: &Dialect) -> String {
    format!(
        "SELECT count(*) FROM {} WHERE outbox = {} AND layout = {partitions} AND (owner IS NULL OR expires_at <= {})",
        shares_table(table),
        literal(table.name()),
        dialect.now
    )
}

/// Everybody who owns a share now, and every relay that is there or was until lately, under any layout: `share` or `member`,
/// number, layout, name, seconds since it is theirs, seconds left (negative: gone without leaving). A member without a name is no relay: see [`super::mysql`].
pub(super) fn ownership(table: &TableName, dialect: &Dialect) -> String {
    let (shares, members, outbox, now) = (
        shares_table(table),
        members_table(table),
        literal(table.name()),
        dialect.now,
    );
    format!(
        "SELECT 'share', share, layout, owner, {now} - since, expires_at - {now} FROM {shares}
         WHERE outbox = {outbox} AND owner IS NOT NULL AND expires_at > {now}
         UNION ALL
         SELECT 'member', 0, layout, member, 0, expires_at - {now} FROM {members}
         WHERE outbox = {outbox} AND member <> ''
         ORDER BY 1, 3, 2, 4"
    )
}

/// One row of the answer to [`ownership`].
pub(super) type OwnershipRow = (String, i64, i64, String, f64, f64);

/// What the rows of the answer to [`ownership`] say.
pub(super) fn owners(rows: Vec<OwnershipRow>) -> Ownership {
    let number = |number: i64| u16::try_from(number).unwrap_or(u16::MAX);
    let mut ownership = Ownership::default();
    for (kind, share, layout, name, held, remaining) in rows {
        let expires_in = span(Some(remaining));
        if kind == "share" {
            ownership.shares.push(OwnedShare {
                share: number(share),
                partitions: number(layout),
                owner: name,
                held: span(Some(held)),
                expires_in,
            });
        } else {
            if remaining <= 0.0 {
                ownership.silent.push((name, span(Some(-remaining))));
                continue;
            }
            ownership.members.push(Member {
                name,
                partitions: number(layout),
                expires_in,
            });
        }
    }
    ownership
}

struct Text<'a> {
    shares: String,
    members: String,
    outbox: String,
    member: String,
    layout: u16,
    ttl: f64,
    dialect: &'a Dialect,
    now: &'a str,
}

impl Text<'_> {
    fn mine(&self) -> String {
        format!(
            "outbox = {} AND layout = {} AND owner = {}",
            self.outbox, self.layout, self.member
        )
    }

    fn rows(&self) -> String {
        let Self {
            shares, outbox, layout, ..
        } = self;
        let or_leave = self.dialect.or_leave;
        format!(
            "INSERT INTO {shares} (outbox, layout, share)
             WITH RECURSIVE n(share) AS (SELECT 0 UNION ALL SELECT share + 1 FROM n WHERE share + 1 < {layout})
             SELECT {outbox}, {layout}, share FROM n WHERE true {or_leave}"
        )
    }

    fn join(&self) -> String {
        let Self {
            members,
            outbox,
            member,
            layout,
            ttl,
            now,
            ..
        } = self;
        let or_set = self.dialect.or_set;
        format!(
            "INSERT INTO {members} (outbox, member, layout, expires_at) VALUES ({outbox}, {member}, {layout}, {now} + {ttl})
             {or_set} expires_at = {now} + {ttl}"
        )
    }

    fn forget(&self) -> String {
        let Self {
            members, outbox, now, ..
        } = self;
        format!("DELETE FROM {members} WHERE outbox = {outbox} AND expires_at < {now} - {FORGET_MEMBERS}")
    }

    /// A lease that ran out and was not taken by another is still this relay's.
    fn renew(&self) -> String {
        format!(
            "UPDATE {} SET expires_at = {} + {} WHERE {}",
            self.shares,
            self.now,
            self.ttl,
            self.mine()
        )
    }

    fn give(&self, numbers: &[u16]) -> String {
        let numbers: Vec<_> = numbers.iter().map(u16::to_string).collect();
        format!("{} AND share IN ({})", self.give_all(), numbers.join(", "))
    }

    fn give_all(&self) -> String {
        format!(
            "UPDATE {} SET owner = NULL, expires_at = 0 WHERE {}",
            self.shares,
            self.mine()
        )
    }

    fn leave(&self) -> String {
        format!(
            "DELETE FROM {} WHERE outbox = {} AND member = {}",
            self.members, self.outbox, self.member
        )
    }

    /// Owners under another number of shares, whose leases ran out, are owners no more: not even by renewing.
    fn end_other_layouts(&self) -> String {
        let Self {
            shares,
            outbox,
            layout,
            now,
            ..
        } = self;
        format!(
            "UPDATE {shares} SET owner = NULL, expires_at = 0
             WHERE outbox = {outbox} AND layout <> {layout} AND owner IS NOT NULL AND expires_at <= {now}"
        )
    }

    /// Takes free shares up to a fair part, and none while anybody owns shares of another layout: a key would have two
    /// owners.
    fn take(&self) -> Vec<String> {
        let Self {
            shares,
            outbox,
            member,
            layout,
            ttl,
            now,
            ..
        } = self;
        let room = self.room();
        let free = format!(
            "FROM {shares} AS f WHERE f.outbox = {outbox} AND f.layout = {layout} AND (f.owner IS NULL OR f.expires_at <= {now})"
        );
        let set = |s: &str| {
            format!("{s}owner = {member}, {s}epoch = {s}epoch + 1, {s}expires_at = {now} + {ttl}, {s}since = {now}")
        };
        match self.dialect.take {
            Take::ByLimit => vec![format!(
                "UPDATE {shares} SET {} WHERE outbox = {outbox} AND layout = {layout} AND share IN (
                     SELECT f.share {free} ORDER BY f.share LIMIT {room})",
                set("")
            )],
            Take::ByNumber => vec![
                format!("SET @outbox_relay_room = {room}"),
                format!(
                    "UPDATE {shares} AS s JOIN (SELECT f.share, row_number() OVER (ORDER BY f.share) AS n {free}) AS free
                         ON free.share = s.share
                     SET {} WHERE s.outbox = {outbox} AND s.layout = {layout} AND free.n <= @outbox_relay_room",
                    set("s.")
                ),
            ],
        }
    }

    /// How many shares are lacking to a fair part. What does not divide evenly is taken when every relay has the whole
    /// part.
    fn room(&self) -> String {
        let Self {
            shares,
            members,
            outbox,
            member,
            layout,
            now,
            ..
        } = self;
        let div = self.dialect.div;
        let live = format!(
            "(SELECT CASE WHEN count(*) > 1 THEN count(*) ELSE 1 END
              FROM {members} WHERE outbox = {outbox} AND layout = {layout} AND expires_at > {now})"
        );
        let owned_by = |who: &str| {
            format!(
                "(SELECT count(*) FROM {shares} AS o WHERE o.outbox = {outbox} AND o.layout = {layout}
                  AND o.owner = {who} AND o.expires_at > {now})"
            )
        };
        let (theirs, mine) = (owned_by("m.member"), owned_by(member));
        let others_lack = format!(
            "EXISTS (SELECT 1 FROM {members} AS m WHERE m.outbox = {outbox} AND m.layout = {layout}
             AND m.member <> {member} AND m.expires_at > {now} AND {theirs} < {layout} {div} {live})"
        );
        let part =
            format!("{layout} {div} {live} + CASE WHEN {layout} % {live} > 0 AND NOT {others_lack} THEN 1 ELSE 0 END");
        let other_layout = format!(
            "EXISTS (SELECT 1 FROM {shares} AS x WHERE x.outbox = {outbox} AND x.layout <> {layout} AND x.owner IS NOT NULL)"
        );
        format!(
            "(SELECT CASE WHEN p.part > p.mine AND NOT {other_layout} THEN p.part - p.mine ELSE 0 END
              FROM (SELECT {part} AS part, {mine} AS mine) AS p)"
        )
    }

    fn view(&self) -> String {
        let Self {
            shares,
            members,
            outbox,
            layout,
            now,
            ..
        } = self;
        format!(
            "SELECT 'share' AS kind, share AS number, owner AS name, epoch, expires_at - {now} AS remaining
             FROM {shares} WHERE outbox = {outbox} AND layout = {layout}
             UNION ALL
             SELECT 'member', 0, member, 0, expires_at - {now}
             FROM {members} WHERE outbox = {outbox} AND layout = {layout} AND expires_at > {now}"
        )
    }
}

/// Says what to do about tables that are not there.
pub(super) fn explain(error: StoreError) -> StoreError {
    match error {
        StoreError::SchemaMissing(text) => missing(&text),
        StoreError::Denied(text) if text.contains("outbox_relay_") => StoreError::Denied(format!(
            "{text}: for its leases the relay needs SELECT, INSERT, UPDATE, DELETE on {SHARES} and {MEMBERS}; grant them"
        )),
        error => error,
    }
}

/// What the rows of the answer say.
pub(super) fn view(rows: Vec<LeaseRow>) -> LeaseView {
    let mut view = LeaseView::default();
    for (kind, number, name, epoch, remaining) in rows {
        match kind.as_str() {
            "share" => view.shares.push(ShareLease {
                share: u16::try_from(number).unwrap_or(u16::MAX),
                owner: name.filter(|_| remaining > 0.0),
                epoch,
            }),
            _ => view.members.extend(name),
        }
    }
    view.shares.sort_unstable_by_key(|lease| lease.share);
    view.members.sort_unstable();
    view
}
