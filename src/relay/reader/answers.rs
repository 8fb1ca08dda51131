//! What the answers to reads say: rows for the dispatcher, ids that were skipped, and when to read next.

use std::time::Duration;

use super::{
    Answer, CHANGE_INTERVAL, DEAD_KEYS, ERROR_PAUSE, PROBE_INTERVAL, Plan, Read, SCAN_PAGE, START_WATCH, TIMER_LATE,
};
use crate::message::{OutboxRow, RowId};
use crate::relay::dispatch::{Dispatcher, Time};
use crate::store::Stub;

impl Plan {
    /// Takes in an answer. Rows go to the dispatcher; returns how many new rows a head read brought.
    pub fn answered(
        &mut self,
        (round, read): (u64, Read),
        answer: Answer,
        dispatcher: &mut Dispatcher,
        now: Time,
    ) -> usize {
        self.errors = 0;
        match (read, answer) {
            // Bodies are of rows that are known, whenever they were asked for.
            (Read::Head { .. } | Read::Scan { .. } | Read::Probe(_) | Read::DeadKeys | Read::Changed, _)
                if round != self.round => {}
            (Read::Head { after, limit, .. }, Answer::Head { rows, whole }) => {
                let count = rows.len();
                let is_end = whole && count < limit as usize;
                self.ends_found += u64::from(is_end);
                self.head_read(after, limit, rows, dispatcher, now);
                self.found_end |= is_end;
                return count;
            }
            (Read::Scan { after, to, .. }, Answer::Scan(stubs)) => self.scanned(after, to, stubs, dispatcher, now),
            (Read::Probe(_), Answer::Probe(probe)) => {
                self.probe_at = now + PROBE_INTERVAL;
                self.holes.probed(&probe, now);
                dispatcher.admit_late(&probe.unsent, now);
                if let Some(rows) = self.unproven.take() {
                    admit(dispatcher, rows, self.unproven_are_new, now);
                }
            }
            (Read::Fetch { ids, .. }, Answer::Fetch(rows)) => dispatcher.fetched(&ids, rows, now),
            (Read::DeadKeys, Answer::DeadKeys(keys)) => {
                self.dead_keys_due = false;
                dispatcher.dead_keys(&keys, keys.len() < DEAD_KEYS as usize, self.asked_at);
            }
            (Read::Changed, Answer::Changed(changed)) => self.told(changed, now),
            _ => {}
        }
        0
    }

    fn told(&mut self, changed: Option<bool>, now: Time) {
        self.tells_changes = changed.is_some();
        self.ask_first = changed == Some(false);
        if self.ask_first {
            self.idle = (self.idle * 2).min(self.poll.max_interval).min(CHANGE_INTERVAL);
            self.head_at = now + self.idle;
        }
    }

    /// A read failed: the next one has to wait, longer and longer.
    pub fn failed(&mut self, now: Time) {
        self.errors = self.errors.saturating_add(1);
        let pause = Duration::from_millis(50) * 2u32.saturating_pow(self.errors.min(7));
        self.head_at = now + pause.min(ERROR_PAUSE);
    }

    fn head_read(&mut self, after: RowId, limit: u32, rows: Vec<OutboxRow>, dispatcher: &mut Dispatcher, now: Time) {
        let full = rows.len() == limit as usize;
        let Some(last) = rows.last().map(|row| row.id) else {
            self.idle = (self.idle * 2).min(self.poll.max_interval);
            self.head_at = if self.wanted { now } else { now + self.idle };
            self.ask_first = true;
            return;
        };
        self.cursor = last;
        self.idle = self.poll.min_interval;
        // From question to question: what the answer took is a part of the pause. A slow database has a little rest all the same.
        let pause = self.idle.saturating_sub(TIMER_LATE);
        self.head_at = if full {
            now
        } else {
            (self.asked_at + pause).max(now + self.idle / 4)
        };
        self.ask_first = false;
        if self.out_of_order {
            // Nothing is known of what is below the very first row.
            let first = RowId(rows[0].id.0.saturating_sub(START_WATCH).max(0));
            let after = if after == RowId(i64::MIN) { first } else { after };
            self.holes.observe(after, rows.iter().map(|row| row.id), now);
        }
        if self.holes.is_empty() {
            admit(dispatcher, rows, self.found_end, now);
        } else {
            self.unproven = Some(rows);
            self.unproven_are_new = self.found_end;
        }
    }

    fn scanned(&mut self, after: RowId, to: RowId, mut stubs: Vec<Stub>, dispatcher: &mut Dispatcher, now: Time) {
        let complete = stubs.len() < SCAN_PAGE as usize;
        let through = match stubs.last() {
            Some(last) if !complete => last.id,
            _ => to,
        };
        // Of rows that appeared under skipped ids a scan from somewhere in the middle may show a later one only: they are
        // left to the next probe, which shows all of them.
        stubs.retain(|stub| !self.holes.contains(stub.id));
        let got = dispatcher.admit_stubs(&stubs, after, through, complete, now);
        // A scan for some key's rows helps the sweep only if it begins where the sweep has come to.
        if let Some(swept) = self.sweep
            && after <= swept
        {
            self.sweep = Some(got.max(swept));
            if complete && got == to {
                self.sweep = None;
                self.sweeps_done += 1;
                dispatcher.look_again();
                self.sweep_at = now + self.poll.sweep_interval;
                self.dead_keys_due = self.watch_dead_keys;
            }
        }
    }
}

fn admit(dispatcher: &mut Dispatcher, rows: Vec<OutboxRow>, are_new: bool, now: Time) {
    if are_new {
        dispatcher.admit_unpublished(rows, now);
    } else {
        dispatcher.admit(rows, now);
    }
}
