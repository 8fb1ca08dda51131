//! Which shares of the rows are this relay's: rows of others are not taken in, and rows of a share that was lost are
//! forgotten as soon as nothing of them is on its way.

use crate::message::{OrderingKey, RowId};
use crate::store::{Lease, share_of};

use super::{Dispatcher, State};

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Share {
    /// Set while the share is owned.
    epoch: Option<i64>,
    /// It is being handed over: what is on its way is settled, nothing else begins.
    draining: bool,
}

impl Share {
    fn takes(self) -> bool {
        self.epoch.is_some() && !self.draining
    }
}

impl Dispatcher {
    /// The share is owned from now on. Everything unsent is to be read from the beginning.
    pub fn own(&mut self, lease: Lease) {
        self.pauses.forget_keys();
        self.shares[usize::from(lease.share)] = Share {
            epoch: Some(lease.epoch),
            draining: false,
        };
    }

    /// The share is not owned any more.
    pub fn disown(&mut self, share: u16) {
        self.shares[usize::from(share)] = Share::default();
        self.forget_share(share);
    }

    /// Nothing more of the share is begun, so that it can be handed over.
    pub fn drain(&mut self, share: u16) {
        self.shares[usize::from(share)].draining = true;
        self.forget_share(share);
    }

    /// The leases that are held, without those that are being handed over.
    pub fn owned(&self) -> Vec<Lease> {
        self.leases(|share| share.takes())
    }

    /// The leases that are being handed over and of which nothing is on its way any more.
    pub fn drained(&self) -> Vec<Lease> {
        let mut leases = self.leases(|share| share.draining);
        if !leases.is_empty() {
            let busy = |lease: &Lease| {
                self.rows
                    .values()
                    .any(|row| row.share == lease.share && row.state.is_under_way())
            };
            leases.retain(|lease| !busy(lease));
        }
        leases
    }

    /// The leases that are held, those being handed over included.
    pub fn held(&self) -> Vec<Lease> {
        self.leases(|share| share.epoch.is_some())
    }

    fn leases(&self, which: impl Fn(Share) -> bool) -> Vec<Lease> {
        let numbered = (0..).zip(&self.shares);
        let chosen = numbered.filter(|(_, share)| which(**share));
        chosen
            .filter_map(|(number, share)| {
                Some(Lease {
                    share: number,
                    epoch: share.epoch?,
                })
            })
            .collect()
    }

    /// The lease under which a row of this share is dealt with now.
    pub(super) fn lease(&self, share: u16) -> Option<Lease> {
        let epoch = self.shares[usize::from(share)].epoch?;
        Some(Lease { share, epoch })
    }

    pub(super) fn share(&self, id: RowId, key: Option<&OrderingKey>) -> u16 {
        match self.settings.partitions {
            1 => 0,
            of => share_of(id, key.map(OrderingKey::as_str), of),
        }
    }

    pub(super) fn takes_share(&self, share: u16) -> bool {
        self.shares[usize::from(share)].takes()
    }

    /// Forgets the rows that nothing was begun with. The others are forgotten when they are settled.
    fn forget_share(&mut self, share: u16) {
        let idle: Vec<_> = self
            .rows
            .iter()
            .filter(|(_, row)| row.share == share && !row.state.is_under_way() && row.state != State::Done)
            .map(|(id, _)| *id)
            .collect();
        for id in idle {
            self.abandon(id);
        }
        let of = self.settings.partitions;
        self.keys
            .forget(|key| of == 1 || share_of(RowId(0), Some(key.as_str()), of) == share);
    }

    /// Forgets a row that is not this relay's business any more.
    pub(super) fn abandon(&mut self, id: RowId) {
        self.drop_body(id);
        self.left.remove(&id);
        let Some(row) = self.rows.remove(&id) else { return };
        self.stubs -= usize::from(matches!(row.state, State::Backoff { .. }));
        if let Some(key) = row.key {
            self.keys.gone(&key, id);
        }
    }
}

impl State {
    /// Whether something about the row is on its way, to the broker or to the table.
    fn is_under_way(self) -> bool {
        matches!(self, State::InFlight(_) | State::Confirmed | State::Failing { .. })
    }
}
