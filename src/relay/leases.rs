//! Keeps this relay's leases: joins, renews, takes its fair part, gives back, leaves.
//!
//! A lease is trusted by this machine's monotonic clock, from *before* the renewal was sent, and for less than its time:
//! when the database says that another may take the share, this relay has stopped using it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use uuid::Uuid;

use crate::health::Health;
use crate::metrics::Metrics;
use crate::store::{Holder, Lease, LeaseAsk, LeaseView, Store, StoreError};

use super::Event;
use super::outage::Outage;
use super::reading::timed;

/// How often a relay that is not alone looks whether a share became free: this bounds the pause of a rolling restart.
const FREE_CHECK: Duration = Duration::from_millis(250);

/// Bound of the farewell; without it the leases run out by themselves.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(2);

/// What is owned now.
#[derive(Debug)]
pub(super) struct Leases {
    /// When this must be known anew.
    pub(super) trusted_until: Instant,
    /// Without those that are being given back.
    pub(super) owned: Vec<Lease>,
    /// How many of them others should have.
    pub(super) surplus: usize,
}

pub(super) struct Keeper {
    pub(super) store: Arc<dyn Store>,
    pub(super) holder: Holder,
    pub(super) ttl: Duration,
    pub(super) metrics: Arc<Metrics>,
    pub(super) health: Arc<Health>,
    pub(super) events: mpsc::Sender<Event>,
}

/// A name for a relay: unique, and of use to a person.
pub(super) fn member_name() -> String {
    // Not there on every system; the name is unique without it.
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}/{}/{}", host.trim(), std::process::id(), Uuid::new_v4().simple())
}

impl Keeper {
    /// Until nobody is left who could give anything back: then the relay has ended, and leaves.
    pub(super) async fn run(self, mut gives: mpsc::UnboundedReceiver<Lease>) {
        let mut outage = Outage::new("renewing the leases");
        let mut giving: Vec<Lease> = Vec::new();
        loop {
            let started = Instant::now();
            let (mut alone, mut pause) = (true, self.ttl / 20);
            let ask = self.ask(&giving, false);
            match timed(&self.metrics, "lease", self.soon(self.store.lease(&ask))).await {
                Ok(view) => {
                    outage.over();
                    // A standby reads nothing: this is what tells that the database is there.
                    self.health.leases.up();
                    giving.clear();
                    alone = view.members.len() <= 1;
                    // Jittered, so that relays that were started together do not stay together.
                    pause = (self.ttl / 3).mul_f64(0.8 + 0.2 * fastrand::f64());
                    if self
                        .events
                        .send(Event::Leases(self.judge(&view, started)))
                        .await
                        .is_err()
                    {
                        break;
                    }
                }
                Err(error) => {
                    if !error.is_conflict() {
                        outage.goes_on(&error.with_advice());
                        self.health.leases.down(&error.with_advice());
                    }
                }
            }
            if !self.wait(pause, alone, &mut gives, &mut giving).await {
                break;
            }
        }
        let farewell = self.ask(&[], true);
        // Without an answer the leases run out by themselves.
        let _ = tokio::time::timeout(LEAVE_TIMEOUT, self.store.lease(&farewell)).await;
    }

    /// Until it is time, or something is to be given or taken; false when the relay has ended.
    async fn wait(
        &self,
        pause: Duration,
        alone: bool,
        gives: &mut mpsc::UnboundedReceiver<Lease>,
        giving: &mut Vec<Lease>,
    ) -> bool {
        let end = tokio::time::Instant::now() + pause;
        loop {
            tokio::select! {
                give = gives.recv() => {
                    let Some(give) = give else { return false };
                    giving.push(give);
                    while let Ok(give) = gives.try_recv() {
                        giving.push(give);
                    }
                    return true;
                }
                () = tokio::time::sleep_until(end) => return true,
                () = tokio::time::sleep(FREE_CHECK), if !alone => {
                    // An error shows at the next renewal.
                    if matches!(self.soon(self.store.has_free_shares(self.holder.partitions)).await, Ok(true)) {
                        return true;
                    }
                }
            }
        }
    }

    /// A call that takes a good part of the leases' time has failed: the next one finds a new connection.
    async fn soon<T>(&self, call: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
        let bound = self.ttl / 4;
        let late = |_| Err(StoreError::Unavailable(format!("no answer within {bound:?}")));
        tokio::time::timeout(bound, call).await.unwrap_or_else(late)
    }

    fn ask(&self, giving: &[Lease], leaving: bool) -> LeaseAsk {
        LeaseAsk {
            member: self.holder.member.clone(),
            partitions: self.holder.partitions,
            ttl: self.ttl,
            give: giving.iter().map(|lease| lease.share).collect(),
            leaving,
        }
    }

    fn judge(&self, view: &LeaseView, started: Instant) -> Leases {
        let mine = |owner: &Option<String>| owner.as_ref() == Some(&self.holder.member);
        let owned = view.shares.iter().filter(|share| mine(&share.owner));
        Leases {
            // The margin is for what lies between this check and the bytes on the wire.
            trusted_until: started + self.ttl.mul_f64(0.8),
            owned: owned
                .map(|share| Lease {
                    share: share.share,
                    epoch: share.epoch,
                })
                .collect(),
            surplus: surplus(view, &self.holder),
        }
    }
}

/// How many shares this relay should hand over: its part of what others lack.
fn surplus(view: &LeaseView, holder: &Holder) -> usize {
    let fair = usize::from(holder.partitions) / view.members.len().max(1);
    let count = |member: &String| {
        view.shares
            .iter()
            .filter(|share| share.owner.as_ref() == Some(member))
            .count()
    };
    let counts: Vec<usize> = view.members.iter().map(count).collect();
    let free = view.shares.iter().filter(|share| share.owner.is_none()).count();
    let lacking: usize = counts.iter().map(|count| fair.saturating_sub(*count)).sum();
    let givers = counts.iter().filter(|count| **count > fair).count();
    let own = count(&holder.member);
    if givers == 0 {
        0
    } else {
        own.saturating_sub(fair)
            .min(lacking.saturating_sub(free).div_ceil(givers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::ShareLease;

    fn view(owners: &[Option<&str>], members: &[&str]) -> LeaseView {
        let share = |(share, owner): (usize, &Option<&str>)| ShareLease {
            share: share as u16,
            owner: owner.map(str::to_owned),
            epoch: 1,
        };
        LeaseView {
            shares: owners.iter().enumerate().map(share).collect(),
            members: members.iter().map(|member| (*member).to_owned()).collect(),
        }
    }

    fn surplus_of(member: &str, view: &LeaseView) -> usize {
        let partitions = view.shares.len() as u16;
        surplus(
            view,
            &Holder {
                member: member.to_owned(),
                partitions,
            },
        )
    }

    #[test]
    fn who_owns_more_than_a_fair_part_hands_over_what_others_lack() {
        let a = Some("a");
        assert_eq!(surplus_of("a", &view(&[a; 16], &["a"])), 0, "alone");
        assert_eq!(surplus_of("a", &view(&[a; 16], &["a", "b"])), 8, "b just came");
        assert_eq!(surplus_of("b", &view(&[a; 16], &["a", "b"])), 0);
        let mut half = [a; 16];
        half[..8].fill(None);
        assert_eq!(
            surplus_of("a", &view(&half, &["a", "b"])),
            0,
            "what b lacks is free already"
        );
        let mut thirds = [a; 16];
        thirds[..5].fill(Some("b"));
        thirds[5..10].fill(Some("c"));
        assert_eq!(surplus_of("a", &view(&thirds, &["a", "b", "c"])), 0, "6, 5, 5 is fair");
        assert_eq!(
            surplus_of("a", &view(&[a; 1], &["a", "b", "c"])),
            0,
            "one share stays where it is"
        );
    }
}
