//! The checker of arrivals is checked: before each run it is told short stories, each with a bug that it is there to find.
//!
//! Bugs inside the relay's own state machine are seeded in `src/relay/dispatch/tests`, one at a time, against the same
//! promises.

use std::time::Duration;

use lapin::BasicProperties;
use lapin::types::FieldTable;
use uuid::Uuid;

use crate::faults::{Kind, Planned, Record};
use crate::ledger::{Fate, Ledger};
use crate::support::Received;

const KEY: Option<u32> = Some(7);

/// Panics when a story with a bug passes, or when one without any does not.
pub(crate) fn checker_finds_what_it_is_for() {
    let stories: [(&str, Tale); 12] = [
        ("", all_is_well),
        ("", a_crash_duplicates),
        ("", the_broker_delivers_again),
        ("have not arrived", a_committed_row_is_lost),
        ("rolled back arrives", what_was_rolled_back_is_sent),
        ("had arrived", what_is_rolled_back_later_was_sent),
        ("nobody wrote", a_message_comes_from_nowhere),
        ("no fault explains", a_copy_without_a_fault),
        ("no fault explains", a_clean_stop_duplicates),
        ("not like the row", a_body_is_changed),
        ("not like the row", a_copy_has_other_properties),
        ("out of order", a_retry_lets_a_later_row_pass),
    ];
    for (expected, tell) in stories {
        let record = Record::new();
        let story = Story {
            ledger: Ledger::new(record.clone()),
            record,
        };
        tell(&story);
        let book = story.ledger.book();
        let mut violations = book.violations.clone();
        if !book.pending.is_empty() {
            violations.push("rows have not arrived".into());
        }
        match violations.as_slice() {
            [] => assert_eq!(expected, "", "the checker did not notice"),
            [violation] => assert!(
                !expected.is_empty() && violation.contains(expected),
                "{expected:?}: {violation}"
            ),
            more => panic!("{expected:?}: {more:#?}"),
        }
    }
}

type Tale = fn(&Story);

struct Story {
    ledger: Ledger,
    record: Record,
}

impl Story {
    /// A committed row: its message.
    fn row(&self) -> Received {
        let (message, id) = self.open_row();
        self.ledger.decided(&[id], Fate::Committed);
        message
    }

    /// A row whose transaction runs.
    fn open_row(&self) -> (Received, Uuid) {
        let id = Uuid::new_v4();
        let (_, body) = self.ledger.write(id, KEY, 0);
        let message = Received {
            message_id: id.to_string(),
            body: body.into_bytes(),
            headers: FieldTable::default(),
            properties: BasicProperties::default(),
            routing_key: "chaos".into(),
            exchange: "events".into(),
            redelivered: false,
            connection: 0,
        };
        (message, id)
    }

    fn arrive(&self, messages: &[&Received]) {
        for message in messages {
            self.ledger.arrived(message);
        }
    }

    fn fault(&self, kind: Kind) {
        let number = self.record.began(&Planned {
            kind,
            relay: 0,
            gap: Duration::ZERO,
            lasts: Duration::ZERO,
        });
        self.record.ended(number);
    }
}

fn all_is_well(story: &Story) {
    let (first, second) = (story.row(), story.row());
    let (_, rolled_back) = story.open_row();
    story.ledger.decided(&[rolled_back], Fate::RolledBack);
    story.arrive(&[&first, &second]);
}

fn a_crash_duplicates(story: &Story) {
    let (first, second) = (story.row(), story.row());
    story.fault(Kind::RelayKill);
    story.arrive(&[&first, &second, &first, &second]);
}

fn the_broker_delivers_again(story: &Story) {
    let (mut first, second) = (story.row(), story.row());
    first.redelivered = true;
    story.arrive(&[&second, &first, &first]);
}

/// Marked before the confirm, passed by the cursor and never swept, or a return that was matched to another message.
fn a_committed_row_is_lost(story: &Story) {
    let (first, _lost) = (story.row(), story.row());
    story.arrive(&[&first]);
}

fn what_was_rolled_back_is_sent(story: &Story) {
    let (message, id) = story.open_row();
    story.ledger.decided(&[id], Fate::RolledBack);
    story.arrive(&[&message]);
}

fn what_is_rolled_back_later_was_sent(story: &Story) {
    let (message, id) = story.open_row();
    story.arrive(&[&message]);
    story.ledger.decided(&[id], Fate::RolledBack);
}

fn a_message_comes_from_nowhere(story: &Story) {
    let mut message = story.row();
    story.arrive(&[&message]);
    message.message_id = Uuid::new_v4().to_string();
    story.arrive(&[&message]);
}

fn a_copy_without_a_fault(story: &Story) {
    let message = story.row();
    story.arrive(&[&message, &message]);
}

fn a_clean_stop_duplicates(story: &Story) {
    let message = story.row();
    story.fault(Kind::RelayTerm);
    story.arrive(&[&message, &message]);
}

fn a_body_is_changed(story: &Story) {
    let mut message = story.row();
    message.body.push(b' ');
    story.arrive(&[&message]);
}

fn a_copy_has_other_properties(story: &Story) {
    let first = story.row();
    let mut copy = first.clone();
    copy.properties = copy.properties.with_app_id("other".into());
    story.fault(Kind::RelayKill);
    story.arrive(&[&first, &copy]);
}

/// Also when the later row was seen through a connection of the consumer that has ended since.
fn a_retry_lets_a_later_row_pass(story: &Story) {
    let (first, mut second) = (story.row(), story.row());
    second.redelivered = true;
    story.fault(Kind::BrokerKill);
    story.arrive(&[&second, &first]);
}
