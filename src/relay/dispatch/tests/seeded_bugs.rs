//! Bugs that are put in on purpose: the checks must find each of them within a few histories. A check that finds none
//! of them proves nothing when it is silent.

use crate::config::Ordering;

use super::scenario::Scenario;
use super::world::{Bug, World};

/// Histories within which a bug must be found.
const TRIES: u64 = 300;

/// What the checks say of the first history in which they find the bug.
fn found(bug: Bug, ordering: Ordering) -> String {
    let mut verdicts = (1..=TRIES).filter_map(|seed| {
        let scenario = Scenario::draw(seed, ordering, 40, 4);
        World::new(scenario, bug).run().err()
    });
    let verdict = verdicts.next().unwrap_or_default();
    let first_line = verdict.lines().next().unwrap_or("nothing was found");
    first_line.to_owned()
}

fn assert_found(bug: Bug, ordering: Ordering, promise: &str) {
    let verdict = found(bug, ordering);
    assert!(verdict.contains(promise), "{bug:?}: {verdict}");
}

const NOTHING_LOST: &str = "every committed row is sent and marked, or a dead letter";

#[test]
fn polling_by_a_cursor_only_loses_rows_that_commit_late() {
    assert_found(Bug::CursorOnlyPoll, Ordering::None, NOTHING_LOST);
}

#[test]
fn without_the_sweep_rows_are_forgotten() {
    assert_found(Bug::NoSweep, Ordering::None, NOTHING_LOST);
}

#[test]
fn a_watermark_of_ids_loses_rows_that_commit_late() {
    assert_found(Bug::IdWatermark, Ordering::None, NOTHING_LOST);
}

#[test]
fn a_mark_before_the_confirm_is_seen() {
    assert_found(Bug::MarkBeforeConfirm, Ordering::Strict, "no mark without a confirm");
}

#[test]
fn a_return_that_is_matched_to_the_wrong_message_is_seen() {
    assert_found(
        Bug::ReturnMatchedToTheWrongMessage,
        Ordering::Strict,
        "no mark without a confirm",
    );
}

#[test]
fn a_retry_that_lets_a_later_message_of_the_key_pass_is_seen() {
    assert_found(Bug::RetryLetsLaterPass, Ordering::Pipelined, "order per key");
    assert_found(
        Bug::RetryLetsLaterPass,
        Ordering::Strict,
        "strict: one message of a key",
    );
}

#[test]
fn a_pause_that_is_not_seen_is_seen() {
    assert_found(Bug::PauseNotSeen, Ordering::None, "nothing that is paused");
}

#[test]
fn a_row_that_passes_one_of_a_paused_exchange_is_seen() {
    assert_found(Bug::PauseLetsLaterPass, Ordering::Strict, "order per key");
    assert_found(Bug::PauseLetsLaterPass, Ordering::Pipelined, "order per key");
}

#[test]
fn a_resume_that_reads_on_where_it_was_is_seen() {
    assert_found(Bug::ResumeReadsOn, Ordering::Strict, "order per key");
}

#[test]
fn a_read_from_before_a_mark_that_is_believed_is_seen() {
    assert_found(
        Bug::StaleReadAfterMark,
        Ordering::Strict,
        "nothing marked is taken in again",
    );
}
