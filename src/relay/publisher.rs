//! Keeps a connection to the broker, with its lanes. A connection that failed in any way is retired whole: closed, its
//! lanes ended and their last outcomes told, before the next one is opened under a new generation number.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tracing::{info, warn};

use crate::broker::{BatchReport, Broker, Connected, Doubt, Lane, Outcome, Session};
use crate::health::Health;
use crate::message::{Compression, Message};
use crate::metrics::Metrics;
use crate::traces::{Server, Spans, Traces};

use super::Event;
use super::dispatch::{Generation, LANE_DEPTH};
use super::outage::Outage;

/// How often the connection's state is looked at.
const WATCH_INTERVAL: Duration = Duration::from_millis(100);

/// Lanes end by themselves once their socket is shut; after this long they are given up, and their messages unknown.
const LANES_END: Duration = Duration::from_secs(5);

/// A connection that lasted longer was a good one: after it the first attempt comes at once.
const GOOD_CONNECTION: Duration = Duration::from_secs(5);

/// Messages for one lane.
pub(super) type Batch = Vec<Arc<Message>>;

pub(super) struct Publisher {
    pub(super) broker: Arc<dyn Broker>,
    pub(super) compression: Option<Compression>,
    pub(super) traces: Option<Arc<Traces>>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) health: Arc<Health>,
    pub(super) events: mpsc::Sender<Event>,
    /// True: close and end.
    pub(super) stop: watch::Receiver<bool>,
}

impl Publisher {
    pub(super) async fn run(mut self) {
        let delays = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(100))
            .with_max_delay(Duration::from_secs(5))
            .with_jitter()
            .without_max_times();
        let mut backoff = delays.build();
        let mut outage = Outage::new("connecting to the broker");
        let mut generation = 0;
        loop {
            let attempt = tokio::select! {
                attempt = self.broker.connect() => attempt,
                () = stopped(&mut self.stop) => return,
            };
            self.metrics.connect(attempt.is_ok());
            match attempt {
                Ok(connected) => {
                    outage.over();
                    generation += 1;
                    let since = Instant::now();
                    if !self.use_connection(connected, generation).await {
                        return;
                    }
                    if since.elapsed() > GOOD_CONNECTION {
                        backoff = delays.build();
                        continue;
                    }
                }
                Err(error) => {
                    self.health.broker.down(&error.0);
                    outage.goes_on(&error.0);
                }
            }
            let pause = backoff.next().unwrap_or(Duration::from_secs(5));
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stopped(&mut self.stop) => return,
            }
        }
    }

    /// Until the connection fails; false when the relay stops.
    async fn use_connection(&mut self, connected: Connected, generation: Generation) -> bool {
        let Connected { session, lanes } = connected;
        info!(broker = session.address(), "connected to the broker");
        self.health.broker.up();
        self.metrics.broker_connected.set(1);
        let (broken, mut breaks) = mpsc::channel(1);
        let broker = Arc::new(Server::of(session.address()));
        let mut tasks = JoinSet::new();
        let mut senders = Vec::with_capacity(lanes.len());
        for (number, lane) in lanes.into_iter().enumerate() {
            let (sender, batches) = mpsc::channel(LANE_DEPTH);
            senders.push(sender);
            let task = LaneTask {
                lane,
                compression: self.compression,
                traces: self.traces.clone().map(|traces| (traces, broker.clone())),
                number,
                generation,
                metrics: self.metrics.clone(),
                events: self.events.clone(),
                broken: broken.clone(),
            };
            tasks.spawn(task.run(batches));
        }
        self.tell(Event::Connected {
            generation,
            lanes: senders,
        })
        .await;
        let mut stop = self.stop.clone();
        let failure = tokio::select! {
            // At a stop the lanes end, too, and that is no failure.
            biased;
            () = stopped(&mut stop) => None,
            failure = self.watch(&*session, &mut breaks) => Some(failure),
            Some(_) = tasks.join_next() => Some(breaks.try_recv().unwrap_or_else(|_| "a lane ended unexpectedly".to_owned())),
        };
        self.metrics.broker_connected.set(0);
        self.metrics.broker_blocked.set(0);
        if let Some(reason) = &failure {
            warn!(reason, "lost the connection to the broker");
            self.health.broker.down(reason);
        }
        self.tell(Event::Retiring).await;
        session.close().await;
        let ended = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(LANES_END, ended).await.is_err() {
            tasks.shutdown().await;
        }
        self.tell(Event::Retired { generation }).await;
        failure.is_some()
    }

    /// Returns why the connection is of no more use.
    async fn watch(&self, session: &dyn Session, breaks: &mut mpsc::Receiver<String>) -> String {
        let mut was_blocked = false;
        loop {
            tokio::select! {
                Some(reason) = breaks.recv() => return session.failure().map_or(reason.clone(), |failure| format!("{failure} ({reason})")),
                () = tokio::time::sleep(WATCH_INTERVAL) => {}
            }
            if let Some(reason) = session.failure() {
                return reason;
            }
            let blocked = session.blocked();
            if blocked != was_blocked {
                was_blocked = blocked;
                self.metrics.broker_blocked.set(i64::from(blocked));
                if blocked {
                    warn!("the broker takes no messages (memory or disk alarm); waiting for it");
                    self.health.broker.down("blocked by the broker: memory or disk alarm");
                } else {
                    info!("the broker takes messages again");
                    self.health.broker.up();
                }
                self.tell(Event::Blocked(blocked)).await;
            }
        }
    }

    async fn tell(&self, event: Event) {
        // The relay is gone: nobody is left to be told.
        let _ = self.events.send(event).await;
    }
}

struct LaneTask {
    lane: Box<dyn Lane>,
    compression: Option<Compression>,
    traces: Option<(Arc<Traces>, Arc<Server>)>,
    number: usize,
    generation: Generation,
    metrics: Arc<Metrics>,
    events: mpsc::Sender<Event>,
    broken: mpsc::Sender<String>,
}

/// A batch that was begun.
struct UnderWay {
    messages: usize,
    since: Instant,
    spans: Option<Spans>,
}

/// The next batch, on a thread where its compression holds nobody up.
struct Compressing {
    plain: Batch,
    work: JoinHandle<Batch>,
}

impl LaneTask {
    /// Until it is given no more batches and has told of all, or the connection is of no more use.
    ///
    /// As long as the lane may be writing it is polled: the others may wait for it. After a report it writes nothing.
    async fn run(mut self, mut batches: mpsc::Receiver<Batch>) {
        let mut compressing = None;
        let mut under_way = VecDeque::new();
        let mut open = true;
        while open || compressing.is_some() || !under_way.is_empty() {
            tokio::select! {
                // No other meanwhile, so that their order stays.
                batch = batches.recv(), if open && compressing.is_none() => match batch {
                    Some(batch) => match self.compression_of(&batch) {
                        Some(how) => compressing = Some(Compressing::begin(batch, how)),
                        None => under_way.push_back(self.begin(batch)),
                    },
                    None => open = false,
                },
                batch = compressed(&mut compressing) => {
                    compressing = None;
                    under_way.push_back(self.begin(batch));
                }
                () = self.lane.wait(), if !under_way.is_empty() => {
                    let mut report = self.lane.report().await;
                    for batch in under_way.drain(..report.batches) {
                        self.metrics.batch(batch.messages, batch.since.elapsed());
                        if let Some(spans) = batch.spans {
                            spans.end(&report.outcomes);
                        }
                    }
                    if report.broken.is_some() {
                        give_back(compressing.take(), &mut batches, &mut report);
                    }
                    if !self.tell(report).await {
                        return;
                    }
                }
            }
        }
    }

    /// How the batch is to be compressed, if one of its messages wants it.
    fn compression_of(&self, batch: &Batch) -> Option<Compression> {
        self.compression
            .filter(|how| batch.iter().any(|message| how.wants(message)))
    }

    fn begin(&mut self, mut batch: Batch) -> UnderWay {
        let spans = self
            .traces
            .as_ref()
            .map(|(traces, broker)| traces.begin(&mut batch, broker));
        let under_way = UnderWay {
            messages: batch.len(),
            since: Instant::now(),
            spans,
        };
        self.lane.begin(batch);
        under_way
    }

    /// False when nothing more can be published here.
    async fn tell(&mut self, report: BatchReport) -> bool {
        let event = Event::Report {
            generation: self.generation,
            lane: self.number,
            batches: report.batches,
            outcomes: report.outcomes,
            broken: report.broken.is_some(),
        };
        let usable = report.broken.is_none();
        if let Some(reason) = report.broken {
            // Another lane may have told already.
            let _ = self.broken.try_send(reason);
        }
        self.events.send(event).await.is_ok() && usable
    }
}

/// Of a lane that is of no more use: nothing of what it has not taken up was sent.
fn give_back(compressing: Option<Compressing>, batches: &mut mpsc::Receiver<Batch>, report: &mut BatchReport) {
    batches.close();
    let compressing = compressing.map(|next| next.plain);
    let waiting = std::iter::from_fn(|| batches.try_recv().ok());
    for batch in compressing.into_iter().chain(waiting) {
        report.batches += 1;
        let unsent = batch
            .iter()
            .map(|message| (message.row, Outcome::Unknown(Doubt::Unsent)));
        report.outcomes.extend(unsent);
    }
}

impl Compressing {
    fn begin(batch: Batch, how: Compression) -> Self {
        let plain = batch.clone();
        let work = tokio::task::spawn_blocking(move || how.apply(&batch));
        Self { plain, work }
    }
}

/// Ends when the batch is compressed; never if there is none.
async fn compressed(compressing: &mut Option<Compressing>) -> Batch {
    match compressing {
        // An error would be a panic in there; what was to be compressed is a good message without it.
        Some(Compressing { plain, work }) => work.await.unwrap_or_else(|_| plain.clone()),
        None => std::future::pending().await,
    }
}

/// Ends when the relay is to stop.
pub(super) async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that nobody is left who could ask for more work.
    let _ = stop.wait_for(|stop| *stop).await;
}
