//! What one history is made of. Everything is drawn from a seed, so that a failed history can be run again.

use std::time::Duration;

use crate::config::{OnDeadLetter, Ordering, Poll};
use crate::message::MessageRules;
use crate::relay::dispatch::{RetryPolicy, Settings};

/// Bodies above this many bytes can never be a message.
pub(super) const MAX_BODY: u64 = 1_000;

/// Exchanges are numbered below this; rows are spread over them.
pub(super) const EXCHANGES: usize = 3;

/// Chances in a thousand.
#[derive(Debug, Clone, Copy)]
pub(super) struct Odds {
    pub(super) unkeyed: u32,
    pub(super) delayed: u32,
    pub(super) invalid: u32,
    pub(super) twin: u32,
    /// The broker refuses the row for ever.
    pub(super) poison: u32,
    pub(super) rollback: u32,
    pub(super) slow_commit: u32,
    pub(super) read_fails: u32,
    pub(super) slow_mark: u32,
    pub(super) unroutable: u32,
    pub(super) nack: u32,
    pub(super) refused: u32,
    /// Of a batch: its confirms do not come.
    pub(super) timeout: u32,
}

/// How often something happens while faults are on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Faults {
    pub(super) crashes: u32,
    pub(super) stops: u32,
    pub(super) breaks: u32,
    pub(super) blocks: u32,
    pub(super) missing_exchanges: u32,
    pub(super) replays: u32,
}

#[derive(Debug, Clone)]
pub(super) struct Scenario {
    pub(super) seed: u64,
    pub(super) settings: Settings,
    pub(super) poll: Poll,
    /// Bodies above this many bytes do not travel with a row.
    pub(super) inline: u64,
    /// Writers come one at a time, and the database tells cheaply whether anything changed (as SQLite does).
    pub(super) one_at_a_time: bool,
    /// Sent rows are deleted.
    pub(super) deletes: bool,
    pub(super) writers: usize,
    pub(super) transactions: u32,
    pub(super) keys: u32,
    /// Longest pause of a writer between two steps.
    pub(super) write_pause: Duration,
    pub(super) odds: Odds,
    pub(super) faults: Faults,
    /// Until then there are faults; afterwards all is well.
    pub(super) healed_at: Duration,
    /// When the relay starts: what was committed before is a backlog.
    pub(super) started_at: Duration,
    /// Longest time in which the broker answers a batch while all is well.
    pub(super) confirm_delay: Duration,
}

impl Scenario {
    /// Draws a history of about `transactions` transactions on `keys` keys.
    pub(super) fn draw(seed: u64, ordering: Ordering, transactions: u32, keys: u32) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        // Every kind of trouble is absent from half of the histories: each is seen alone and with others.
        let mut some = |most: u32| if rng.bool() { rng.u32(0..=most) } else { 0 };
        let odds = Odds {
            unkeyed: some(500),
            delayed: some(150),
            invalid: some(100),
            twin: some(150),
            poison: some(100),
            rollback: some(300),
            slow_commit: some(300),
            read_fails: some(300),
            slow_mark: some(300),
            unroutable: some(200),
            nack: some(200),
            refused: some(200),
            timeout: some(100),
        };
        let faults = Faults {
            crashes: some(3),
            stops: some(2),
            breaks: some(4),
            blocks: some(3),
            missing_exchanges: some(2),
            replays: some(4),
        };
        let one_at_a_time = rng.u8(0..4) == 0;
        Self {
            seed,
            settings: settings(ordering, &mut rng),
            poll: poll(&mut rng),
            inline: rng.u64(20..150),
            one_at_a_time,
            deletes: rng.bool(),
            writers: rng.usize(1..=5),
            transactions,
            keys,
            write_pause: Duration::from_millis(rng.u64(1..400)),
            odds,
            faults,
            healed_at: Duration::from_millis(rng.u64(1_000..15_000)),
            started_at: Duration::from_millis(if rng.bool() { 0 } else { rng.u64(0..3_000) }),
            confirm_delay: Duration::from_millis(rng.u64(1..200)),
        }
    }

    /// A history without trouble: the ground on which a single fault is looked at.
    pub(super) fn calm(seed: u64, ordering: Ordering, transactions: u32, keys: u32) -> Self {
        let mut scenario = Self::draw(seed, ordering, transactions, keys);
        scenario.odds = Odds {
            unkeyed: 0,
            delayed: 0,
            invalid: 0,
            twin: 0,
            poison: 0,
            rollback: 0,
            slow_commit: 0,
            read_fails: 0,
            slow_mark: 0,
            unroutable: 0,
            nack: 0,
            refused: 0,
            timeout: 0,
        };
        scenario.faults = Faults {
            crashes: 0,
            stops: 0,
            breaks: 0,
            blocks: 0,
            missing_exchanges: 0,
            replays: 0,
        };
        scenario
    }
}

/// Small bounds, so that every one of them is met.
fn settings(ordering: Ordering, rng: &mut fastrand::Rng) -> Settings {
    let in_flight = rng.usize(1..=12);
    let min_delay = Duration::from_millis(rng.u64(1..500));
    Settings {
        ordering,
        on_dead_letter: if rng.bool() {
            OnDeadLetter::Continue
        } else {
            OnDeadLetter::Block
        },
        retry: RetryPolicy {
            min_delay,
            max_delay: min_delay * rng.u32(1..20),
            max_attempts: rng.u32(1..=4),
        },
        rules: MessageRules {
            default_exchange: String::new(),
            max_body_bytes: MAX_BODY,
            ..MessageRules::default()
        },
        partitions: 1,
        lanes: rng.usize(1..=4).min(in_flight),
        in_flight,
        unmarked: rng.usize(1..=12),
        rows: rng.usize(2..=25),
        stubs: rng.usize(1..=12),
        rows_per_key: rng.usize(1..=6),
        bytes: rng.u64(30..3_000),
    }
}

fn poll(rng: &mut fastrand::Rng) -> Poll {
    Poll {
        min_interval: Duration::from_millis(2),
        max_interval: Duration::from_millis(rng.u64(10..1_000)),
        sweep_interval: Duration::from_millis(rng.u64(1_000..8_000)),
        batch_size: rng.u32(1..=10),
    }
}
