//! What has happened is passed on to the dispatcher and the plan.

use crate::broker::{Doubt, Outcome};
use crate::relay::Event;
use crate::relay::dispatch::Time;
use crate::relay::reader::{Answer, Read};
use crate::store::StoreError;

use super::{Core, LaneSlot};

impl Core {
    pub(super) fn take(&mut self, event: Event) {
        let now = self.now();
        match event {
            Event::Read { read, answer } => self.take_read(read, answer, now),
            Event::Inserted => self.plan.look(now),
            Event::Leases(leases) => self.take_leases(leases),
            Event::Pauses(pauses) => self.take_pauses(pauses),
            Event::Connected { generation, lanes } => {
                self.lanes = lanes
                    .into_iter()
                    .map(|batches| LaneSlot { batches, under_way: 0 })
                    .collect();
                self.generation = Some(generation);
                self.dispatcher.connected(generation);
            }
            Event::Blocked(true) => self.dispatcher.cut_off(),
            Event::Blocked(false) => {
                if let Some(generation) = self.generation {
                    self.dispatcher.connected(generation);
                }
            }
            Event::Report {
                generation,
                lane,
                batches,
                outcomes,
                broken,
            } => {
                for (row, outcome) in outcomes {
                    self.dispatcher.outcome(generation, row, outcome, now);
                }
                if self.generation == Some(generation) {
                    self.lanes[lane].under_way -= batches;
                    if broken {
                        self.cut_off();
                    }
                }
            }
            Event::Retiring => self.cut_off(),
            Event::Retired { generation } => {
                for row in std::mem::take(&mut self.unsent) {
                    let unsent = Outcome::Unknown(Doubt::Unsent);
                    self.dispatcher.outcome(generation, row, unsent, now);
                }
                self.dispatcher.retired(generation, now);
            }
            Event::Settled {
                marked,
                written,
                refused,
            } => {
                self.settling = false;
                self.dispatcher.marked(&marked);
                self.dispatcher.failures_written(&written, now);
                self.dispatcher.failures_refused(&refused, now);
            }
            Event::Marked(marked) => self.dispatcher.marked(&marked),
        }
    }

    fn take_read(&mut self, read: (u64, Read), answer: Result<Answer, StoreError>, now: Time) {
        self.reading = false;
        let is_head = matches!(read.1, Read::Head { .. });
        if answer.is_ok() && matches!(read.1, Read::Changed) {
            self.metrics.looked();
        }
        match answer {
            Ok(answer) => {
                self.database.over();
                self.health.database.up();
                let rows = self.plan.answered(read, answer, &mut self.dispatcher, now);
                if is_head {
                    self.metrics.polled(Some(rows));
                }
            }
            Err(error) => {
                if !error.is_conflict() {
                    self.database.goes_on(&error.with_advice());
                    self.health.database.down(&error.with_advice());
                }
                self.plan.failed(now);
                if is_head {
                    self.metrics.polled(None);
                }
            }
        }
        // Rows that wait to be used are as old as the read that brought them.
        if !self.plan.holds_rows() {
            self.dispatcher.read_finished();
        }
    }

    /// Nothing more is published on this connection.
    fn cut_off(&mut self) {
        self.generation = None;
        self.lanes.clear();
        self.dispatcher.cut_off();
    }
}
