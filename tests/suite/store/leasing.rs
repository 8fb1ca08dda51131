//! Leases: one owner a share, fair parts, epochs that grow, and writes that lost leases refuse.

use std::sync::Arc;
use std::time::Duration;

use outbox_relay::store::{Holder, Lease, LeaseAsk, LeaseView, NextStep, Store};

use crate::store::harness::{Harness, failure, head};

const MINUTE: Duration = Duration::from_secs(60);

async fn ask(store: &Arc<dyn Store>, member: &str, change: impl FnOnce(&mut LeaseAsk)) -> LeaseView {
    let mut ask = LeaseAsk {
        member: member.to_owned(),
        partitions: 16,
        ttl: MINUTE,
        give: Vec::new(),
        leaving: false,
    };
    change(&mut ask);
    store.lease(&ask).await.expect("an answer")
}

async fn renew(store: &Arc<dyn Store>, member: &str) -> LeaseView {
    ask(store, member, |_| {}).await
}

fn owned(view: &LeaseView, member: &str) -> Vec<u16> {
    let mine = view
        .shares
        .iter()
        .filter(|share| share.owner.as_deref() == Some(member));
    mine.map(|share| share.share).collect()
}

pub(crate) async fn shares_are_taken_given_and_left(db: &impl Harness) {
    let store = db.migrated().await;
    let view = renew(&store, "a").await;
    assert_eq!(
        (owned(&view, "a").len(), view.shares.len(), view.members.len()),
        (16, 16, 1)
    );
    assert!(view.shares.iter().all(|share| share.epoch == 1));
    let view = renew(&store, "b").await;
    assert_eq!((owned(&view, "b"), view.members.len()), (vec![], 2), "nothing is free");
    assert!(!store.has_free_shares(16).await.expect("an answer"));
    let view = ask(&store, "a", |ask| ask.give = vec![3, 4, 5, 6, 7, 8, 9, 10, 11]).await;
    assert_eq!(
        owned(&view, "a").len(),
        8,
        "one more than a fair part was given, and is taken again"
    );
    assert!(store.has_free_shares(16).await.expect("an answer"));
    let view = renew(&store, "b").await;
    assert_eq!(owned(&view, "b").len(), 8);
    let taken = &view.shares[usize::from(owned(&view, "b")[0])];
    assert_eq!(taken.epoch, 2, "an epoch a change of owner");
    ask(&store, "b", |ask| ask.leaving = true).await;
    let view = renew(&store, "a").await;
    assert_eq!((owned(&view, "a").len(), view.members), (16, vec!["a".to_owned()]));
}

pub(crate) async fn a_lease_that_ran_out_is_taken_over_and_one_that_did_not_is_not(db: &impl Harness) {
    let store = db.migrated().await;
    ask(&store, "a", |ask| ask.ttl = Duration::from_millis(200)).await;
    let view = renew(&store, "b").await;
    assert!(owned(&view, "b").is_empty());
    crate::support::until("the leases run out", Duration::from_secs(5), async || {
        owned(&renew(&store, "b").await, "b").len() == 16
    })
    .await;
    let view = renew(&store, "a").await;
    assert_eq!(
        (owned(&view, "a"), owned(&view, "b").len()),
        (vec![], 16),
        "what was lost stays lost"
    );
}

pub(crate) async fn a_lease_that_ran_out_and_was_not_taken_is_renewed_under_its_epoch(db: &impl Harness) {
    let store = db.migrated().await;
    ask(&store, "a", |ask| ask.ttl = Duration::ZERO).await;
    let view = renew(&store, "a").await;
    assert_eq!(owned(&view, "a").len(), 16);
    assert!(view.shares.iter().all(|share| share.epoch == 1));
}

pub(crate) async fn shares_of_another_number_are_not_owned_beside_each_other(db: &impl Harness) {
    let store = db.migrated().await;
    renew(&store, "a").await;
    let view = ask(&store, "b", |ask| ask.partitions = 4).await;
    assert_eq!((owned(&view, "b"), view.shares.len()), (vec![], 4));
    ask(&store, "a", |ask| ask.leaving = true).await;
    let view = ask(&store, "b", |ask| ask.partitions = 4).await;
    assert_eq!(owned(&view, "b").len(), 4);
    let view = renew(&store, "a").await;
    assert!(owned(&view, "a").is_empty(), "nor the other way round");
}

pub(crate) async fn a_failure_under_a_lost_lease_takes_nothing(db: &impl Harness) {
    let store = db.migrated().await;
    db.insert(&["k"]).await;
    let holder = |member: &str| Holder {
        member: member.to_owned(),
        partitions: 16,
    };
    let view = renew(&store, "a").await;
    let share = view.shares[2].share;
    let mut dead = failure(1, 9, NextStep::Dead);
    let lease = |epoch| Some(Lease { share, epoch });
    ask(&store, "a", |ask| ask.leaving = true).await;
    renew(&store, "b").await;
    for (member, epoch) in [("a", 1), ("b", 1), ("a", 2)] {
        dead.lease = lease(epoch);
        let written = store
            .record_failures(std::slice::from_ref(&dead), &holder(member))
            .await
            .expect("an answer");
        assert_eq!(written, 0, "{member} in epoch {epoch}");
    }
    assert_eq!(head(&store).await[0].attempts, 0);
    dead.lease = lease(2);
    assert_eq!(
        store.record_failures(&[dead], &holder("b")).await.expect("an answer"),
        1
    );
    assert!(head(&store).await.is_empty());
}

/// Many ask at once: never two owners, and in the end everybody has a fair part.
pub(crate) async fn a_crowd_shares_fairly(db: &impl Harness) {
    db.migrated().await;
    let members: Vec<(String, Arc<dyn Store>)> = (0..5).map(|n| (format!("m{n}"), db.store())).collect();
    let all = members
        .iter()
        .map(|(member, store)| async move { renew(store, member).await });
    for view in futures_util::future::join_all(all).await {
        let total: usize = members.iter().map(|(member, _)| owned(&view, member).len()).sum();
        assert!(total <= 16);
    }
    // Whoever came first gives away what it has too much.
    for _ in 0..5 {
        for (member, store) in &members {
            let mine = owned(&renew(store, member).await, member);
            ask(store, member, |ask| ask.give = mine.into_iter().skip(3).collect()).await;
        }
    }
    let view = renew(&members[0].1, "m0").await;
    let mut counts: Vec<_> = members.iter().map(|(member, _)| owned(&view, member).len()).collect();
    counts.sort_unstable();
    assert_eq!(counts, [3, 3, 3, 3, 4]);
}
