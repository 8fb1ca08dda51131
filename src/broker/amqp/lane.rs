//! A lane: one channel, its batches in order, and the truth about every message of them.
//!
//! lapin attaches a returned message to whichever confirm of the channel completes next. So a batch is judged when all
//! its confirms are in, and by the answers to *all* that is under way on the channel: if none of them brought a return,
//! nothing of the batch was returned, since the return of a message comes before its own confirm, and some confirm that
//! has completed carries it. As soon as one brings a return, nothing more is sent until every confirm is in: then every
//! return has been attached to some confirm, and the returned `message_id`s, taken as a set, name exactly the
//! unroutable messages.

mod alone;
mod answers;

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use lapin::Channel;

use crate::broker::{BatchReport, Doubt, Lane, Outcome, Session};
use crate::message::{Message, OwnHeaders, RowId};

use super::AmqpOptions;
use super::connection::Connection;
use answers::Answer;

/// How often the clock of the confirm timeout is advanced; it stands still while the broker is blocked.
const TICK: Duration = Duration::from_millis(100);

/// How often a new channel is asked for in the place of one that the broker closed, and the pause between.
const REOPEN_ATTEMPTS: u32 = 10;
const REOPEN_PAUSE: Duration = Duration::from_millis(50);

type Group = Vec<Arc<Message>>;

pub(super) struct AmqpLane {
    connection: Connection,
    channel: Channel,
    confirm_timeout: Duration,
    own_headers: OwnHeaders,
    /// Batches that were not begun.
    waiting: VecDeque<Group>,
    sending: Option<Sending>,
    /// Batches that were sent, oldest first.
    sent: VecDeque<Sent>,
    /// Why the batch that is in `sending` cannot be sent.
    failure: Option<String>,
    /// Something came back: no verdict, and nothing more is sent, before all confirms are in.
    came_back: bool,
    /// How often the channel was closed for no reason while the same messages were under way.
    gone: u32,
    /// The time during which the broker was not blocked, and when that was last looked at.
    clock: Duration,
    looked: Instant,
}

/// A batch that is being written to the socket, or is about to be.
struct Sending {
    batch: Arc<Group>,
    since: Duration,
    /// Something of it may have been sent. Set by `work`.
    begun: Arc<AtomicBool>,
    work: Pin<Box<dyn Future<Output = Result<Sent, String>> + Send>>,
}

/// A batch that was written to the socket.
struct Sent {
    group: Group,
    /// One for each message of `group`, in the same order.
    answers: Vec<Answer>,
    /// What was known before it was sent.
    outcomes: Vec<(RowId, Outcome)>,
    since: Duration,
}

impl Sent {
    fn is_answered(&self) -> bool {
        self.answers.iter().all(Answer::is_here)
    }
}

impl AmqpLane {
    pub(super) async fn open(connection: Connection, options: &AmqpOptions) -> lapin::Result<Self> {
        Ok(Self {
            channel: connection.channel().await?,
            connection,
            confirm_timeout: options.confirm_timeout,
            own_headers: options.own_headers.clone(),
            waiting: VecDeque::new(),
            sending: None,
            sent: VecDeque::new(),
            failure: None,
            came_back: false,
            gone: 0,
            clock: Duration::ZERO,
            looked: Instant::now(),
        })
    }

    /// Begins to write the next batch to the socket, if it can go together with what is under way.
    fn send_next(&mut self) {
        // In an alarm what is begun is not sent, and would keep what is sent from being judged.
        let waits = self.sending.is_some() || self.came_back || self.connection.blocked();
        if waits || self.next_goes_alone() {
            return;
        }
        let Some(batch) = self.waiting.pop_front() else { return };
        let batch = Arc::new(batch);
        let since = self.clock;
        let (connection, channel) = (self.connection.clone(), self.channel.clone());
        let (own_headers, messages) = (self.own_headers.clone(), batch.clone());
        let begun = Arc::new(AtomicBool::new(false));
        let begins = begun.clone();
        let work = async move {
            let (group, outcomes) = alone::check_exchanges(&connection, &messages).await?;
            let until_written = connection.writing().begin().await;
            begins.store(true, Ordering::Relaxed);
            let answers = answers::publish(until_written, &channel, &group, &own_headers).await;
            Ok(Sent {
                group,
                answers,
                outcomes,
                since,
            })
        };
        self.sending = Some(Sending {
            batch,
            since,
            begun,
            work: Box::pin(work),
        });
    }

    /// Whether the next batch has messages that the broker may refuse.
    fn next_goes_alone(&self) -> bool {
        let next = self.waiting.front();
        next.is_some_and(|batch| !self.connection.trust().has(batch))
    }

    /// The same, and it can go now.
    fn must_go_alone(&self) -> bool {
        self.sending.is_none() && self.sent.is_empty() && self.next_goes_alone()
    }

    /// Whether the oldest batch under way has had its time.
    fn timed_out(&mut self) -> bool {
        let now = Instant::now();
        if !self.connection.blocked() {
            // No more at once: neither this lane nor the whole relay may have been awake.
            self.clock += now.duration_since(self.looked).min(TICK);
        }
        self.looked = now;
        let oldest = self.sent.front().map(|sent| sent.since);
        let oldest = oldest.or(self.sending.as_ref().map(|sending| sending.since));
        oldest.is_some_and(|since| self.clock >= since + self.confirm_timeout)
    }

    /// The verdict on what can be judged now.
    async fn judge(&mut self) -> Option<BatchReport> {
        if let Some(why) = self.failure.take() {
            return Some(self.give_up(Doubt::Disconnected, why));
        }
        if self.must_go_alone() {
            return Some(self.go_alone().await);
        }
        for answer in self.sent.iter_mut().flat_map(|sent| &mut sent.answers) {
            answer.look();
        }
        let mut answers = self.sent.iter().flat_map(|sent| &sent.answers);
        let failed = answers.clone().any(Answer::is_error);
        self.came_back |= answers.any(Answer::brings_a_return);
        let answered = self.sent.iter().take_while(|sent| sent.is_answered()).count();
        let all = self.sent.len();
        let sure = match (failed, self.came_back) {
            // Of what is being sent no answers can be seen.
            _ if self.sending.is_some() => 0,
            (true, _) => all,
            (false, true) if answered < all => 0,
            (false, _) => answered,
        };
        if sure > 0 {
            return Some(self.settle(sure, false).await);
        }
        if !self.timed_out() {
            return None;
        }
        Some(match self.sending {
            None => self.settle(all, true).await,
            Some(_) => self.give_up(Doubt::Timeout, alone::no_confirm(self.confirm_timeout)),
        })
    }

    /// The messages of the oldest `count` batches and their answers; what was known before is told.
    fn take_sent(&mut self, count: usize, report: &mut BatchReport) -> (Group, Vec<Answer>) {
        let (mut group, mut answers) = (Group::new(), Vec::new());
        for sent in self.sent.drain(..count) {
            report.outcomes.extend(sent.outcomes);
            if group.is_empty() {
                (group, answers) = (sent.group, sent.answers);
            } else {
                group.extend(sent.group);
                answers.extend(sent.answers);
            }
        }
        (group, answers)
    }

    /// Settles the oldest `count` batches: those that are answered, or all if the channel takes no more.
    async fn settle(&mut self, count: usize, timed_out: bool) -> BatchReport {
        let mut report = BatchReport::of(count);
        let (group, answers) = self.take_sent(count, &mut report);
        self.came_back = false;
        let failed = answers.iter().any(Answer::is_error);
        let messages = if failed { group.clone() } else { Group::new() };
        let attempt = self.judged(group, answers, timed_out);
        match self.after(attempt, &mut report).await {
            Ok(again) => self.one_by_one(again.into(), &mut report).await,
            Err((unsettled, doubt, why)) => report.broken(doubt, unsettled.into_iter().flatten(), why),
        }
        self.trust_confirmed(&messages, &report);
        self.conclude(report)
    }

    /// Publishes the next batch with nothing else under way.
    async fn go_alone(&mut self) -> BatchReport {
        let mut report = BatchReport::of(1);
        let batch = self.waiting.pop_front().unwrap_or_default();
        let check = alone::check_exchanges(&self.connection, &batch);
        match within(self.confirm_timeout, &self.connection, check).await {
            Some(Ok((messages, outcomes))) => {
                report.outcomes.extend(outcomes);
                let messages = self.not_refused(messages, &mut report);
                self.one_by_one(self.groups(&messages), &mut report).await;
                self.trust_confirmed(&batch, &report);
            }
            Some(Err(error)) => report.broken(Doubt::Disconnected, batch, error),
            None => report.broken(Doubt::Disconnected, batch, "no answer about an exchange".to_owned()),
        }
        self.conclude(report)
    }

    /// The connection is of no more use. The answers to a batch that is being written cannot be seen, and without them no
    /// other is believed.
    fn give_up(&mut self, doubt: Doubt, why: String) -> BatchReport {
        let begun = |sending: &Sending| sending.begun.load(Ordering::Relaxed);
        let seen = !self.sending.as_ref().is_some_and(begun);
        let mut report = BatchReport::of(self.sent.len());
        let (mut group, answers) = self.take_sent(self.sent.len(), &mut report);
        if seen {
            let heard = answers::heard(answers);
            let (settled, unsettled) = answers::judge(group, heard, false, self.own_headers.dedup.is_some());
            report.outcomes.extend(settled);
            group = unsettled;
        }
        // Where all can be seen it is known by now, and of what was to be written nothing was sent.
        let perhaps_sent = |group: Group| match seen {
            true => group,
            false => group.into_iter().map(answers::perhaps_there).collect(),
        };
        report.broken(doubt, perhaps_sent(group), why.clone());
        if let Some(sending) = self.sending.take() {
            report.batches += 1;
            // Of what was not sent no confirm is missing.
            let doubt = if seen { Doubt::Disconnected } else { doubt };
            report.broken(doubt, perhaps_sent(Arc::unwrap_or_clone(sending.batch)), why);
        }
        self.conclude(report)
    }

    /// If the connection is of no more use, what was not begun is given back.
    fn conclude(&mut self, mut report: BatchReport) -> BatchReport {
        self.gone = 0;
        if let Some(why) = report.broken.clone() {
            for batch in self.waiting.drain(..) {
                report.batches += 1;
                report.broken(Doubt::Disconnected, batch, why.clone());
            }
        }
        report
    }
}

/// What `work` gives, if it ends before `timeout`. While the broker is blocked nothing can be sent, and the clock stands
/// still.
async fn within<T>(timeout: Duration, connection: &Connection, work: impl Future<Output = T>) -> Option<T> {
    tokio::pin!(work);
    let mut waited = Duration::ZERO;
    while waited < timeout {
        tokio::select! {
            biased;
            result = &mut work => return Some(result),
            () = tokio::time::sleep(TICK) => {}
        }
        if !connection.blocked() {
            waited += TICK;
        }
    }
    None
}

/// Ends when the batch was sent; never if there is none.
async fn sent(sending: &mut Option<Sending>) -> Result<Sent, String> {
    match sending {
        Some(sending) => sending.work.as_mut().await,
        None => std::future::pending().await,
    }
}

/// Waits until all answers are here.
async fn answered(batches: impl Iterator<Item = &mut Sent>) {
    for sent in batches {
        answers::all_here(&mut sent.answers).await;
    }
}

#[async_trait]
impl Lane for AmqpLane {
    fn begin(&mut self, batch: Vec<Arc<Message>>) {
        self.waiting.push_back(batch);
    }

    async fn wait(&mut self) {
        while self.failure.is_none() && !self.must_go_alone() {
            self.send_next();
            // No verdict before all answers can be seen.
            let awaited = match (&self.sending, self.came_back) {
                (Some(_), _) => 0,
                (None, true) => self.sent.len(),
                (None, false) => self.sent.len().min(1),
            };
            tokio::select! {
                biased;
                sent = sent(&mut self.sending) => match sent {
                    Ok(sent) => {
                        self.sending = None;
                        self.sent.push_back(sent);
                    }
                    Err(error) => self.failure = Some(error),
                },
                () = answered(self.sent.iter_mut().take(awaited)), if awaited > 0 => return,
                () = tokio::time::sleep(TICK) => if self.timed_out() { return },
            }
        }
    }

    async fn report(&mut self) -> BatchReport {
        loop {
            self.wait().await;
            if let Some(report) = self.judge().await {
                return report;
            }
        }
    }
}
