//! What a person asks of a store.

use std::time::Duration;

use outbox_relay::message::RowId;
use outbox_relay::store::operator::{DeadFilter, Operator, Refused::GivenUp, Refused::Waiting, SentFilter, SentMark};
use outbox_relay::store::{LeaseAsk, NextStep};

use crate::store::harness::{Harness, confirmed, failure, head, head_ids, nobody};

const HOUR: Duration = Duration::from_secs(3_600);
const FIRST: RowId = RowId(i64::MIN);

async fn listed(operator: &dyn Operator, filter: DeadFilter) -> Vec<i64> {
    let letters = operator.dead_letters(&filter, FIRST, 100).await.expect("a list");
    letters.iter().map(|letter| letter.id.0).collect()
}

fn ids(ids: &[i64]) -> Vec<RowId> {
    ids.iter().copied().map(RowId).collect()
}

/// Six rows with the keys a, b, a, b, none, c, of which 2 to 6 are dead letters with these errors.
async fn with_dead_letters(db: &impl Harness) -> std::sync::Arc<dyn Operator> {
    db.migrated().await;
    let operator = db.operator();
    db.insert(&["a", "b", "a", "b", "", "c"]).await;
    let errors = [
        "unroutable: no queue is bound",
        "no_exchange",
        "noXexchange: not one of ours",
        "invalid: headers",
        "unroutable",
    ];
    let failures: Vec<_> = (2..=6)
        .zip(errors)
        .map(|(id, error)| {
            let mut failure = failure(id, 10, NextStep::Dead);
            failure.error = error.to_owned();
            failure
        })
        .collect();
    operator.record_failures(&failures, &nobody()).await.expect("written");
    operator
}

pub(crate) async fn dead_letters_are_listed_by_filter(db: &impl Harness) {
    let operator = with_dead_letters(db).await;
    db.execute("UPDATE outbox SET exchange = 'other' WHERE id = 3").await;
    let old = db.in_seconds(-7_200);
    db.execute(&format!("UPDATE outbox SET dead_at = {old} WHERE id = 4"))
        .await;
    let all = DeadFilter::default;
    let some = |text: &str| Some(text.to_owned());
    let default_exchange = "events".to_owned();
    for (filter, expected) in [
        (all(), vec![2, 3, 4, 5, 6]),
        (
            DeadFilter {
                ids: ids(&[1, 6, 3, 99]),
                ..all()
            },
            vec![3, 6],
        ),
        (
            DeadFilter {
                reason: some("unroutable"),
                ..all()
            },
            vec![2, 6],
        ),
        (
            DeadFilter {
                reason: some("no_exchange"),
                ..all()
            },
            vec![3],
        ),
        (
            DeadFilter {
                reason: some("other"),
                ..all()
            },
            vec![4],
        ),
        (
            DeadFilter {
                exchange: some("other"),
                ..all()
            },
            vec![3],
        ),
        (
            DeadFilter {
                exchange: some("events"),
                default_exchange,
                ..all()
            },
            vec![2, 4, 5, 6],
        ),
        (
            DeadFilter {
                key: some("b"),
                ..all()
            },
            vec![2, 4],
        ),
        (
            DeadFilter {
                older_than: Some(HOUR),
                ..all()
            },
            vec![4],
        ),
        (
            DeadFilter {
                newer_than: Some(HOUR),
                key: some("b"),
                ..all()
            },
            vec![2],
        ),
    ] {
        let shown = format!("{filter:?}");
        assert_eq!(listed(&*operator, filter).await, expected, "{shown}");
    }
    let page = operator.dead_letters(&all(), RowId(3), 2).await.expect("a page");
    assert_eq!(page.iter().map(|letter| letter.id.0).collect::<Vec<_>>(), [4, 5]);
    let letter = &page[1];
    assert_eq!(
        (letter.routing_key.as_str(), letter.ordering_key.as_deref()),
        ("r", None)
    );
    assert_eq!((letter.attempts, letter.payload_bytes), (10, Some(2)));
    assert_eq!(letter.last_error.as_deref(), Some("invalid: headers"));
    assert!(letter.message_id.is_some() && letter.dead_at >= letter.created_at && letter.created_at > 1.0e9);
    assert_eq!(
        operator.dead_payload(RowId(5)).await.expect("a body").as_deref(),
        Some(&b"{}"[..])
    );
    assert_eq!(
        operator.dead_payload(RowId(1)).await.expect("an answer"),
        None,
        "not dead"
    );
    let reasons = operator.dead_reasons().await.expect("reasons");
    let count = |reason: &str| {
        reasons
            .iter()
            .find(|(name, _)| name == reason)
            .map_or(0, |(_, count)| *count)
    };
    assert_eq!(
        (
            count("unroutable"),
            count("no_exchange"),
            count("invalid"),
            count("refused"),
            count("other")
        ),
        (2, 1, 1, 0, 1)
    );
}

pub(crate) async fn dead_letters_are_replayed_and_discarded_once(db: &impl Harness) {
    let operator = with_dead_letters(db).await;
    assert_eq!(
        operator.replay(&ids(&[1, 3, 2, 99]), GivenUp).await.expect("replayed"),
        2,
        "1 is unsent, 99 is not there"
    );
    let fresh = "SELECT count(*) FROM outbox WHERE attempts = 0 AND next_attempt_at IS NULL AND dead_at IS NULL";
    assert_eq!(db.number(fresh).await, 3);
    let store = db.store();
    assert_eq!(head_ids(&store).await, [1, 2, 3]);
    assert_eq!(
        operator.replay(&ids(&[2, 3]), GivenUp).await.expect("replayed"),
        0,
        "the second operator"
    );
    assert_eq!(
        operator.discard(&ids(&[1, 2, 4]), GivenUp).await.expect("discarded"),
        1,
        "only what is dead"
    );
    assert_eq!(operator.discard(&ids(&[4]), GivenUp).await.expect("discarded"), 0);
    assert_eq!(listed(&*operator, DeadFilter::default()).await, [5, 6]);
    // Another instance, as another process would be, and both at once.
    let other = db.operator();
    let both = ids(&[5, 6]);
    let (one, two) = tokio::join!(operator.replay(&both, GivenUp), other.replay(&both, GivenUp));
    assert_eq!(
        one.expect("replayed") + two.expect("replayed"),
        2,
        "each counts what it changed"
    );
}

pub(crate) async fn waiting_keys_name_the_row_they_wait_for(db: &impl Harness) {
    db.migrated().await;
    let operator = db.operator();
    db.insert(&["due", "late", "late", "refused", "refused", ""]).await;
    let later = db.in_seconds(500);
    db.execute(&format!(
        "UPDATE outbox SET available_at = {later} WHERE id IN (3, 2, 6)"
    ))
    .await;
    let refusals = [failure(5, 3, NextStep::RetryIn(HOUR))];
    operator.record_failures(&refusals, &nobody()).await.expect("written");
    let keys = operator.waiting_keys(None, 10).await.expect("keys");
    let found: Vec<_> = keys
        .iter()
        .map(|key| (key.key.as_str(), key.row.0, key.attempts))
        .collect();
    assert_eq!(found, [("late", 2, 0), ("refused", 5, 3)]);
    assert!(keys[1].due_in > HOUR / 2 && keys[1].last_error.is_some());
    assert!(keys.iter().all(|key| key.age.is_none_or(|age| age < HOUR)), "{keys:?}");
    assert_eq!(operator.waiting_keys(None, 1).await.expect("keys").len(), 1);
}

pub(crate) async fn a_row_that_waits_is_released_once(db: &impl Harness) {
    db.migrated().await;
    let (operator, store) = (db.operator(), db.store());
    db.insert(&["a", "a", "b", "b", "a", "c"]).await;
    assert_eq!(head_ids(&store).await, [1, 2, 3, 4, 5, 6]);
    let refusals = [
        failure(1, 3, NextStep::RetryIn(HOUR)),
        failure(3, 1, NextStep::RetryIn(HOUR)),
        failure(6, 1, NextStep::RetryIn(Duration::ZERO)),
    ];
    operator.record_failures(&refusals, &nobody()).await.expect("written");
    let mut counts = operator.rows_of_keys(&["a", "none", "b"]).await.expect("counts");
    counts.sort_unstable();
    assert_eq!(counts, [("a".to_owned(), 3), ("b".to_owned(), 2)]);
    let waiting = async |key| {
        let keys = operator.waiting_keys(key, 9).await.expect("keys");
        keys.iter().map(|key| key.row.0).collect::<Vec<_>>()
    };
    assert_eq!(waiting(None).await, [1, 3]);
    assert_eq!(waiting(Some("b")).await, [3]);
    assert_eq!(waiting(Some("none")).await, [0; 0]);
    // Neither what is due, nor what was not refused, nor what is not there.
    let rows = ids(&[1, 2, 6, 99]);
    assert_eq!(operator.replay(&rows, Waiting).await.expect("replayed"), 1);
    assert_eq!(operator.replay(&rows, Waiting).await.expect("replayed"), 0, "once");
    assert_eq!(operator.replay(&ids(&[3]), GivenUp).await.expect("replayed"), 0);
    let rows = ids(&[3, 4, 6]);
    assert_eq!(operator.discard(&rows, Waiting).await.expect("discarded"), 1);
    assert_eq!(operator.discard(&rows, Waiting).await.expect("discarded"), 0, "once");
    assert_eq!(waiting(None).await, [0; 0]);
    let rows = head(&store).await;
    assert_eq!(rows.iter().map(|row| row.id.0).collect::<Vec<_>>(), [1, 2, 4, 5, 6]);
    assert_eq!((rows[0].attempts, rows[0].due_in), (0, Duration::ZERO));
}

pub(crate) async fn sent_rows_are_unsent_again_once(db: &impl Harness) {
    db.migrated().await;
    let (operator, store) = (db.operator(), db.store());
    db.insert(&["a", "", "b", "a", "c"]).await;
    let refusals = [failure(1, 3, NextStep::RetryIn(Duration::ZERO))];
    operator.record_failures(&refusals, &nobody()).await.expect("written");
    assert_eq!(operator.sent_mark().await.expect("a mark"), SentMark::Time);
    let before = operator.database().await.expect("a clock").now;
    assert_eq!(store.mark_sent(&confirmed(1..=4)).await.expect("marked"), 4);
    // In SQLite a mark has milliseconds.
    let after = operator.database().await.expect("a clock").now + 0.001;
    let wanted = async |filter: SentFilter| {
        let rows = operator.sent_rows(&filter, FIRST, 100).await.expect("rows");
        let wanted = rows.into_iter().filter(|row| row.wanted);
        wanted.map(|row| (row.id.0, row.keyed)).collect::<Vec<_>>()
    };
    let filter = SentFilter::default;
    let some = |text: &str| Some(text.to_owned());
    for (filter, expected) in [
        (filter(), vec![(1, true), (2, false), (3, true), (4, true)]),
        (
            SentFilter {
                since: Some(before - 0.001),
                until: Some(after),
                ids: ids(&[2, 5, 99]),
                ..filter()
            },
            vec![(2, false)],
        ),
        (
            SentFilter {
                since: Some(after),
                ..filter()
            },
            vec![],
        ),
        (
            SentFilter {
                until: Some(before - 0.001),
                ..filter()
            },
            vec![],
        ),
        (
            SentFilter {
                key: some("a"),
                routing_key: some("r"),
                ..filter()
            },
            vec![(1, true), (4, true)],
        ),
        (
            SentFilter {
                routing_key: some("other"),
                ..filter()
            },
            vec![],
        ),
        (
            SentFilter {
                exchange: some("events"),
                default_exchange: "events".to_owned(),
                key: some("b"),
                ..filter()
            },
            vec![(3, true)],
        ),
        (
            SentFilter {
                exchange: some("other"),
                ..filter()
            },
            vec![],
        ),
    ] {
        let shown = format!("{filter:?}");
        assert_eq!(wanted(filter).await, expected, "{shown}");
    }
    let page = operator.sent_rows(&filter(), RowId(2), 2).await.expect("a page");
    assert_eq!(page.iter().map(|row| row.id.0).collect::<Vec<_>>(), [3, 4]);

    let some_rows = ids(&[1, 3, 5, 99]);
    assert_eq!(
        operator
            .replay_sent(&some_rows, Some(before - 1.0))
            .await
            .expect("set back"),
        0,
        "sent later"
    );
    let other = db.operator();
    let (one, two) = tokio::join!(
        operator.replay_sent(&some_rows, Some(after)),
        other.replay_sent(&some_rows, Some(after))
    );
    assert_eq!(
        one.expect("set back") + two.expect("set back"),
        2,
        "each counts what it changed"
    );
    let rows = head(&store).await;
    assert_eq!(
        rows.iter().map(|row| (row.id.0, row.attempts)).collect::<Vec<_>>(),
        [(1, 0), (3, 0), (5, 0)]
    );
    assert_eq!(operator.replay_sent(&ids(&[2]), None).await.expect("set back"), 1);
}

pub(crate) async fn owners_are_told_with_their_time(db: &impl Harness) {
    db.migrated().await;
    let operator = db.operator();
    assert_eq!(operator.ownership().await.expect("owners").shares.len(), 0);
    let ask = |member: &str| LeaseAsk {
        member: member.to_owned(),
        partitions: 4,
        ttl: HOUR,
        give: Vec::new(),
        leaving: false,
    };
    operator.lease(&ask("one")).await.expect("leases");
    operator.lease(&ask("two")).await.expect("leases");
    let ownership = operator.ownership().await.expect("owners");
    let shares: Vec<_> = ownership
        .shares
        .iter()
        .map(|share| (share.share, share.partitions, share.owner.as_str()))
        .collect();
    assert_eq!(shares, [(0, 4, "one"), (1, 4, "one"), (2, 4, "one"), (3, 4, "one")]);
    let members: Vec<_> = ownership.members.iter().map(|member| member.name.as_str()).collect();
    assert_eq!(members, ["one", "two"]);
    let share = &ownership.shares[0];
    assert!(
        share.held < Duration::from_secs(60) && share.expires_in > HOUR / 2,
        "{share:?}"
    );
    let database = operator.database().await.expect("a database");
    assert!(!database.version.is_empty() && database.now > 1.0e9, "{database:?}");
}

pub(crate) async fn upkeep_misses_an_index_that_is_gone(db: &impl Harness) {
    db.migrated().await;
    let operator = db.operator();
    let looked = async || {
        let upkeep = operator.upkeep().await.expect("an answer");
        (upkeep.unsent_index.exists, upkeep.dead_index.exists)
    };
    assert_eq!(looked().await, (true, true));
    if let Some(dead_index) = db.dead_index() {
        db.drop_index(dead_index).await;
        assert_eq!(looked().await, (true, false));
    }
    db.drop_index("outbox_relay_unsent").await;
    assert_eq!(looked().await, (false, false));
    // Without them everything is still answered.
    operator.inspect().await.expect("a table");
    operator.waiting_keys(None, 1).await.expect("keys");
    assert!(listed(&*operator, DeadFilter::default()).await.is_empty());
    // What is advised helps.
    let upkeep = operator.upkeep().await.expect("an answer");
    db.execute(&upkeep.unsent_index.create).await;
    if db.dead_index().is_some() {
        db.execute(&upkeep.dead_index.create).await;
    }
    assert_eq!(looked().await, (true, true));
}
