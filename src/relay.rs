//! The stages wired together: one loop owns the state and turns on events; reading, publishing and marking happen in
//! tasks of their own, so that they overlap.

mod core;
pub mod dispatch;
pub mod holes;
mod housekeeping;
mod leases;
pub(crate) mod outage;
mod pauses;
mod publisher;
mod purge;
pub mod reader;
mod reading;
mod settler;
mod wakeup;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tracing::{error, warn};

use crate::broker::{Broker, Confirmed, Outcome};
use crate::config::{Config, OnDeadLetter, Ordering};
use crate::health::Health;
use crate::message::{MessageRules, RowId};
use crate::metrics::Metrics;
use crate::store::{Holder, Pause, Store, StoreError};
use crate::traces::Traces;

use self::core::{Core, Queues};
use dispatch::{Dispatcher, Generation, RetryPolicy, Settings};
use leases::{Keeper, Leases};
use publisher::{Batch, Publisher};
use purge::Purger;
use reader::{Answer, Plan, Read};
use settler::Settler;

/// Channels per connection. Measured: 4 channels of 250 reach the broker's rate, 1 channel of 1,000 half of it.
const LANES: usize = 4;

/// How many channels are opened and dispatched to.
pub fn lanes(config: &Config) -> usize {
    LANES.min(config.publish.in_flight as usize)
}

/// How long the farewells to broker and database may take together; kept back of the grace.
const FAREWELL: Duration = Duration::from_secs(3);

/// Rows that must wait are remembered without their bodies, about 200 bytes each; above this many (50 MB) no new rows
/// are read until some have gone.
const STUBS: usize = 250_000;

/// Keys that wait behind rows of paused exchanges are remembered, about 20 bytes each.
const PAUSED_KEYS: usize = 1_000_000;

/// What the tasks tell the loop. Every sender has a bounded number of these under way.
enum Event {
    Read {
        /// With the round it belongs to.
        read: (u64, Read),
        answer: Result<Answer, StoreError>,
    },
    /// Rows may have been inserted: it is worth a look.
    Inserted,
    Leases(Leases),
    /// What people have paused.
    Pauses(Vec<Pause>),
    Connected {
        generation: Generation,
        lanes: Vec<mpsc::Sender<Batch>>,
    },
    /// The broker takes no messages, or takes them again.
    Blocked(bool),
    Report {
        generation: Generation,
        lane: usize,
        /// How many of the lane's batches these were.
        batches: usize,
        outcomes: Vec<(RowId, Outcome)>,
        /// The connection is of no more use.
        broken: bool,
    },
    /// The connection is being given up: nothing more is to be published on it.
    Retiring,
    /// All outcomes of the connection have been told.
    Retired {
        generation: Generation,
    },
    /// A job is done.
    Settled {
        marked: Vec<Confirmed>,
        /// Refusals that are written, and those that the database will not take.
        written: Vec<RowId>,
        refused: Vec<RowId>,
    },
    /// Rows were marked that could not be before.
    Marked(Vec<Confirmed>),
}

/// How the relay is asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Keep running.
    No,
    /// Finish what is under way, then end.
    Gracefully,
    /// End at once.
    Now,
}

/// How the relay ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Everything that was published is settled.
    Cleanly,
    /// The grace was over: some messages may be sent again by the next relay.
    Unsettled,
    /// A second signal came: likewise.
    AtOnce,
    /// A part of the relay itself failed; a person should see the log.
    Broken,
}

/// What the relay works with.
pub struct Parts {
    /// The configuration in force.
    pub config: Config,
    /// The outbox.
    pub store: Arc<dyn Store>,
    /// The broker.
    pub broker: Arc<dyn Broker>,
    /// Counted into.
    pub metrics: Arc<Metrics>,
    /// Told to.
    pub health: Arc<Health>,
    /// Where spans are made; `None`: there are none.
    pub traces: Option<Arc<Traces>>,
}

/// Runs until it is asked to stop.
pub async fn run(parts: Parts, stop: watch::Receiver<Stop>) -> Ended {
    let Parts {
        config,
        store,
        broker,
        metrics,
        health,
        traces,
    } = parts;
    let (events, inbox) = mpsc::channel(64);
    let (reads, read_queue) = mpsc::channel(1);
    let (jobs, job_queue) = mpsc::channel(1);
    let (gives, give_queue) = mpsc::unbounded_channel();
    let (close_broker, broker_closed) = watch::channel(false);
    let mut tasks = JoinSet::new();
    tasks.spawn(reading::run(store.clone(), metrics.clone(), read_queue, events.clone()));
    let holder = Holder {
        member: leases::member_name(),
        partitions: partitions(&config),
    };
    // Set once in a process: a second relay in it would only be named like the first.
    let _ = health.member.set(holder.member.clone());
    let settler = Settler::new(store.clone(), metrics.clone(), events.clone(), holder.clone());
    tasks.spawn(settler.run(job_queue));
    let keeper = Keeper {
        store: store.clone(),
        holder,
        ttl: config.lease_ttl,
        metrics: metrics.clone(),
        health: health.clone(),
        events: events.clone(),
    };
    let mut keeping = tokio::spawn(keeper.run(give_queue));
    tasks.spawn(housekeeping::sample_backlog(store.clone(), metrics.clone()));
    tasks.spawn(housekeeping::summarise(metrics.clone()));
    tasks.spawn(pauses::watch(
        store.clone(),
        metrics.clone(),
        health.clone(),
        events.clone(),
    ));
    if !config.outbox.mapping.is_default() {
        tasks.spawn(housekeeping::tidy(store.clone()));
    }
    let (own_first, owns_first) = watch::channel(true);
    if let Some(retention) = config.outbox.retention {
        let purger = Purger {
            store: store.clone(),
            metrics: metrics.clone(),
            health: health.clone(),
            retention,
            bound: config.database_timeout,
        };
        tasks.spawn(purger.run(owns_first));
    }
    let (sleep, asleep) = watch::channel(false);
    tasks.spawn(wakeup::run(store.clone(), metrics.clone(), asleep, events.clone()));
    let publisher = Publisher {
        broker,
        compression: config.message.compression,
        traces,
        metrics: metrics.clone(),
        health: health.clone(),
        events,
        stop: broker_closed,
    };
    let mut publishing = tokio::spawn(publisher.run());
    let mut core = Core::new(
        Dispatcher::new(settings(&config), fastrand::u64(..)),
        Plan::new(
            config.poll,
            store.commits_out_of_order(),
            config.on_dead_letter == OnDeadLetter::Block,
        ),
        Queues {
            inbox,
            reads,
            jobs,
            gives,
            sleep,
            own_first,
        },
        partitions(&config),
        config.shutdown,
        metrics,
        health,
    );
    let ended = tokio::select! {
        ended = core.run(stop) => ended,
        Some(_) = tasks.join_next() => {
            error!("a part of the relay ended unexpectedly; ending, to be started anew");
            Ended::Broken
        }
        _ = &mut keeping => {
            error!("the keeper of the leases ended unexpectedly; ending, to be started anew");
            Ended::Broken
        }
        _ = &mut publishing => {
            error!("the publisher ended unexpectedly; ending, to be started anew");
            Ended::Broken
        }
    };
    if ended == Ended::AtOnce {
        return ended;
    }
    // First the connection, then the leases: whoever takes them over finds that the broker has dealt with all that was
    // sent here.
    let _ = close_broker.send(true);
    core.let_publisher_go();
    let farewell = async {
        if !publishing.is_finished() {
            // How it ended was told above, or does not matter any more.
            let _ = (&mut publishing).await;
        }
        drop(core);
        if !keeping.is_finished() {
            let _ = (&mut keeping).await;
        }
    };
    if tokio::time::timeout(farewell_time(config.shutdown.grace), farewell)
        .await
        .is_err()
    {
        warn!("broker or database did not say goodbye in time; leases that were not given back run out by themselves");
    }
    publishing.abort();
    keeping.abort();
    tasks.shutdown().await;
    store.close().await;
    ended
}

/// The part of the grace that is kept for the farewells.
fn farewell_time(grace: Duration) -> Duration {
    FAREWELL.min(grace / 4)
}

/// One relay at a time works on an SQLite file: there is no cheap way to read only some shares, and nothing to gain, as
/// writers come one at a time.
pub(crate) fn partitions(config: &Config) -> u16 {
    let url = config.database_url.expose();
    if url.to_ascii_lowercase().starts_with("sqlite") {
        1
    } else {
        config.partitions
    }
}

fn settings(config: &Config) -> Settings {
    let in_flight = config.publish.in_flight as usize;
    let batch = config.poll.batch_size as usize;
    Settings {
        ordering: config.ordering,
        on_dead_letter: config.on_dead_letter,
        retry: RetryPolicy {
            min_delay: config.retry.min_delay,
            max_delay: config.retry.max_delay,
            max_attempts: config.retry.max_attempts,
        },
        rules: MessageRules {
            default_exchange: config.amqp_exchange.clone(),
            max_body_bytes: config.publish.max_message_bytes,
            allowed_headers: config.message.allowed_headers.clone(),
            own_headers: config.message.own_headers.clone(),
            cloudevents: config.cloudevents.clone().map(Arc::new),
        },
        partitions: partitions(config),
        lanes: lanes(config),
        in_flight,
        // One window being marked while the next is in flight, and one more between them.
        unmarked: 2 * in_flight,
        rows: 2 * in_flight + 2 * batch,
        stubs: STUBS,
        paused_keys: PAUSED_KEYS,
        // Of a key whose rows go one at a time, so many that the next ones are here when others are slow; of one that has
        // the window for itself, all that may be held before it is crowded.
        rows_per_key: match config.ordering {
            Ordering::Pipelined => 2 * in_flight + batch,
            Ordering::Strict | Ordering::None => (in_flight / 2 + batch / 2).max(16),
        },
        bytes: config.publish.in_flight_bytes,
    }
}
