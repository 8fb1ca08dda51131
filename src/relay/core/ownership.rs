//! Which shares are this relay's: what the leases say is passed on to the dispatcher and the plan.

use tracing::{info, warn};

use crate::relay::leases::Leases;
use crate::store::{Lease, Shares};

use super::Core;

impl Core {
    pub(super) fn take_leases(&mut self, leases: Leases) {
        self.trusted_until = Some(leases.trusted_until);
        self.given.retain(|given| leases.owned.contains(given));
        let now_owned: Vec<Lease> = leases
            .owned
            .into_iter()
            .filter(|lease| !self.given.contains(lease))
            .collect();
        let held = self.dispatcher.held();
        let lost: Vec<Lease> = held
            .iter()
            .copied()
            .filter(|lease| !now_owned.contains(lease))
            .collect();
        let gained: Vec<Lease> = now_owned.into_iter().filter(|lease| !held.contains(lease)).collect();
        for lease in &lost {
            self.dispatcher.disown(lease.share);
        }
        for lease in &gained {
            self.dispatcher.own(*lease);
        }
        if !lost.is_empty() {
            self.metrics.leases_lost.inc_by(lost.len() as u64);
            warn!(shares = ?numbers(&lost), "lost leases: another relay has taken these shares over");
        }
        if !gained.is_empty() {
            info!(shares = ?numbers(&gained), "took over shares");
        }
        let owned = self.dispatcher.owned();
        let under_way = self.dispatcher.held().len() - owned.len();
        let more = leases.surplus.saturating_sub(under_way);
        let handing_over: Vec<Lease> = owned.into_iter().rev().take(more).collect();
        for lease in &handing_over {
            self.dispatcher.drain(lease.share);
        }
        if !(lost.is_empty() && gained.is_empty() && handing_over.is_empty()) {
            self.read_owned(!gained.is_empty());
        }
    }

    /// Gives back the shares of which nothing is on its way any more.
    pub(super) fn hand_over(&mut self) {
        let drained = self.dispatcher.drained();
        if drained.is_empty() {
            return;
        }
        info!(shares = ?numbers(&drained), "handing over shares");
        for lease in drained {
            self.dispatcher.disown(lease.share);
            self.given.push(lease);
            // The keeper ends only after this loop.
            let _ = self.queues.gives.send(lease);
        }
    }

    fn read_owned(&mut self, anew: bool) {
        let owned: Vec<u16> = numbers(&self.dispatcher.owned());
        let shares = match owned.len() {
            0 => None,
            n if n == usize::from(self.partitions) => Some(Shares::All),
            _ => Some(Shares::Some {
                of: self.partitions,
                owned,
            }),
        };
        self.plan.read_shares(shares, anew);
    }
}

fn numbers(leases: &[Lease]) -> Vec<u16> {
    leases.iter().map(|lease| lease.share).collect()
}
