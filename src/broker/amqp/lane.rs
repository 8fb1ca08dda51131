//! A lane: one channel, one batch at a time, and the truth about every message of it.
//!
//! lapin attaches a returned message to whichever confirm completes next. So nothing is decided before *all* confirms
//! of a batch are in: by then every return has been attached to some confirm of the same batch, and the returned
//! `message_id`s, taken as a set, name exactly the unroutable messages.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::FutureExt;
use futures_util::future::join_all;
use lapin::options::BasicPublishOptions;
use lapin::{Channel, Confirmation, PublisherConfirm};

use crate::broker::{BatchReport, Confirmed, Doubt, Lane, Outcome, Session};
use crate::message::{Copies, Message, OwnHeaders, RowId};

use super::AmqpOptions;
use super::connection::{Connection, ExchangeCheck, soft_error};
use super::properties::{properties, short};

/// How often the clock of the confirm timeout is advanced; it stands still while the broker is blocked.
const TICK: Duration = Duration::from_millis(100);

/// How often a new channel is asked for in the place of one that the broker closed, and the pause between.
const REOPEN_ATTEMPTS: u32 = 10;
const REOPEN_PAUSE: Duration = Duration::from_millis(50);

/// Unroutable messages must come back, not vanish.
const MANDATORY: BasicPublishOptions = BasicPublishOptions {
    mandatory: true,
    immediate: false,
};

type Group = Vec<Arc<Message>>;

pub(super) struct AmqpLane {
    connection: Connection,
    channel: Channel,
    confirm_timeout: Duration,
    own_headers: OwnHeaders,
}

/// What publishing a group of messages led to.
struct Attempt {
    /// Messages whose fate is known.
    settled: Vec<(RowId, Outcome)>,
    /// The others, in their order.
    unsettled: Group,
    end: End,
}

enum End {
    /// Every confirm came.
    Complete,
    /// The broker closed the channel, for this reason, because of one of the messages.
    ChannelClosed { code: u16, text: String },
    /// The channel was closed before anything was sent on it.
    ChannelGone,
    /// The connection is of no more use.
    Broken(Doubt, String),
}

impl AmqpLane {
    pub(super) async fn open(connection: Connection, options: &AmqpOptions) -> lapin::Result<Self> {
        Ok(Self {
            channel: connection.channel().await?,
            connection,
            confirm_timeout: options.confirm_timeout,
            own_headers: options.own_headers.clone(),
        })
    }

    /// Sets aside the messages whose exchange is missing; the others are ready to be published.
    async fn check_exchanges(&self, batch: &[Arc<Message>], report: &mut BatchReport) -> Result<Group, String> {
        let mut missing: HashMap<&str, String> = HashMap::new();
        let mut good = Group::with_capacity(batch.len());
        let mut last_good = None;
        for message in batch {
            let exchange = message.exchange.as_str();
            if last_good != Some(exchange) && !missing.contains_key(exchange) {
                match self.connection.look_at_exchange(exchange).await {
                    Ok(ExchangeCheck::Present) => last_good = Some(exchange),
                    Ok(ExchangeCheck::Missing(text)) => {
                        missing.insert(exchange, text);
                    }
                    Err(error) => return Err(error.to_string()),
                }
            }
            match missing.get(exchange) {
                Some(text) => report.outcomes.push((message.row, Outcome::NoExchange(text.clone()))),
                None => good.push(message.clone()),
            }
        }
        Ok(good)
    }

    /// Messages of exchanges that refused one before go last and alone.
    fn groups(&self, messages: Group) -> VecDeque<Group> {
        let suspects = self.connection.suspects();
        if suspects.is_empty() {
            return VecDeque::from([messages]);
        }
        let (alone, together): (Group, Group) = messages.into_iter().partition(|m| suspects.contains(&m.exchange));
        std::iter::once(together)
            .chain(alone.into_iter().map(|message| vec![message]))
            .collect()
    }

    /// Publishes `group` in order and waits for its confirms.
    async fn attempt(&self, group: Group) -> Attempt {
        let mut answers = Vec::with_capacity(group.len());
        let publishing = publish_all(&self.channel, &group, &self.own_headers, &mut answers);
        let timed_out = self.within_timeout(publishing).await.is_none();
        let answers: Vec<_> = answers.into_iter().map(Answer::now).collect();
        let end = self.end(&answers, timed_out);
        let complete = matches!(end, End::Complete);
        let (settled, unsettled) = judge(group, answers, complete, self.own_headers.dedup.is_some());
        Attempt {
            settled,
            unsettled,
            end,
        }
    }

    /// What `work` gives, if it ends before the confirm timeout. While the broker is blocked nothing can be sent, and
    /// the clock stands still.
    async fn within_timeout<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::pin!(work);
        let mut waited = Duration::ZERO;
        while waited < self.confirm_timeout {
            tokio::select! {
                biased;
                result = &mut work => return Some(result),
                () = tokio::time::sleep(TICK) => {}
            }
            if !self.connection.blocked() {
                waited += TICK;
            }
        }
        None
    }

    fn end(&self, answers: &[Heard], timed_out: bool) -> End {
        if timed_out {
            let text = format!("no confirm within {:?}", self.confirm_timeout);
            return End::Broken(Doubt::Timeout, text);
        }
        let errors = || {
            answers.iter().filter_map(|heard| match &heard.verdict {
                Verdict::Error(error) => Some(&**error),
                _ => None,
            })
        };
        let Some(first) = errors().next() else {
            return End::Complete;
        };
        if !self.connection.connected() {
            return End::Broken(Doubt::Disconnected, first.to_string());
        }
        match errors().find_map(soft_error) {
            Some((code, text)) => End::ChannelClosed { code, text },
            None if errors().count() == answers.len() && !self.channel.status().connected() => End::ChannelGone,
            None => End::Broken(Doubt::Disconnected, first.to_string()),
        }
    }

    /// Decides what to do with the messages that were on a channel when the broker closed it.
    fn after_refusal(&self, unsettled: Group, code: u16, text: &str, report: &mut BatchReport) -> Vec<Group> {
        let one_exchange = unsettled.windows(2).all(|pair| pair[0].exchange == pair[1].exchange);
        let Some(first) = unsettled.first() else {
            return Vec::new();
        };
        if !one_exchange {
            return by_exchange(unsettled);
        }
        if code == 404 {
            self.connection.forget_exchange(&first.exchange);
            let refused = |m: &Arc<Message>| (m.row, Outcome::NoExchange(text.to_owned()));
            report.outcomes.extend(unsettled.iter().map(refused));
            return Vec::new();
        }
        self.connection.suspect(&first.exchange);
        if unsettled.len() == 1 {
            report.outcomes.push((first.row, Outcome::Refused(text.to_owned())));
            return Vec::new();
        }
        unsettled.into_iter().map(|message| vec![message]).collect()
    }

    /// A new channel on the same connection. lapin may still be busy with the end of the old one (and reuses its
    /// number), so that the first attempt can fail.
    async fn reopen(&mut self) -> Result<(), String> {
        let mut why = String::new();
        for _ in 0..REOPEN_ATTEMPTS {
            match self.within_timeout(self.connection.channel()).await {
                Some(Ok(channel)) => {
                    self.channel = channel;
                    return Ok(());
                }
                Some(Err(error)) => why = error.to_string(),
                None => return Err("no new channel within the time".to_owned()),
            }
            if !self.connection.connected() {
                break;
            }
            tokio::time::sleep(REOPEN_PAUSE).await;
        }
        Err(format!("no new channel: {why}"))
    }
}

#[async_trait]
impl Lane for AmqpLane {
    async fn publish(&mut self, batch: &[Arc<Message>]) -> BatchReport {
        let mut report = BatchReport {
            outcomes: Vec::with_capacity(batch.len()),
            broken: None,
        };
        let mut groups = match self.within_timeout(self.check_exchanges(batch, &mut report)).await {
            Some(Ok(messages)) => self.groups(messages),
            Some(Err(error)) => return all_unknown(batch, Doubt::Disconnected, error),
            None => return all_unknown(batch, Doubt::Timeout, "no answer about an exchange".to_owned()),
        };
        let mut reopened = 0;
        while let Some(group) = groups.pop_front() {
            if group.is_empty() {
                continue;
            }
            let attempt = self.attempt(group).await;
            for (row, outcome) in attempt.settled {
                report.outcomes.push((row, outcome));
            }
            let (again, usable) = match attempt.end {
                End::Complete if attempt.unsettled.is_empty() => (Vec::new(), Ok(())),
                End::Complete => (vec![attempt.unsettled], Err("an answer is missing".to_owned())),
                End::ChannelClosed { code, text } => {
                    let again = self.after_refusal(attempt.unsettled, code, &text, &mut report);
                    (again, self.reopen().await)
                }
                End::ChannelGone => {
                    reopened += 1;
                    // Once is an accident of the channel; more often, something is wrong with the connection.
                    let usable = match reopened {
                        1 => self.reopen().await,
                        _ => Err("the channel closes by itself".to_owned()),
                    };
                    (vec![attempt.unsettled], usable)
                }
                End::Broken(doubt, text) => {
                    let rest = attempt.unsettled.into_iter().chain(groups.into_iter().flatten());
                    report
                        .outcomes
                        .extend(rest.map(|message| (message.row, Outcome::Unknown(doubt))));
                    report.broken = Some(text);
                    return report;
                }
            };
            for group in again.into_iter().rev() {
                groups.push_front(group);
            }
            if let Err(why) = usable {
                let rest = groups.into_iter().flatten();
                report
                    .outcomes
                    .extend(rest.map(|message| (message.row, Outcome::Unknown(Doubt::Disconnected))));
                report.broken = Some(why);
                return report;
            }
        }
        self.trust_confirmed(batch, &report);
        report
    }
}

impl AmqpLane {
    /// An exchange that took a message again is no longer suspected.
    fn trust_confirmed(&self, batch: &[Arc<Message>], report: &BatchReport) {
        let suspects = self.connection.suspects().clone();
        for message in batch.iter().filter(|message| suspects.contains(&message.exchange)) {
            let confirmed =
                |(row, outcome): &(RowId, Outcome)| *row == message.row && matches!(outcome, Outcome::Confirmed(_));
            if report.outcomes.iter().any(confirmed) {
                self.connection.trust(&message.exchange);
            }
        }
    }
}

/// What the broker, or lapin for it, said of one message.
enum Verdict {
    Ack,
    Nack,
    Error(Box<lapin::Error>),
    /// Nothing yet.
    Silence,
}

/// An answer, with the returned message that lapin attached to it: of this message, or of any other of the batch.
struct Heard {
    verdict: Verdict,
    returned: Option<Box<Returned>>,
}

struct Returned {
    message_id: String,
    text: String,
}

/// The answer to one publish, as far as it has come.
enum Answer {
    Pending(PublisherConfirm),
    Here(Heard),
}

impl Answer {
    /// Every answer that is there must be looked at, also behind one that is missing: it may carry the return of a
    /// message whose own confirm came without it.
    fn now(self) -> Heard {
        match self {
            Answer::Here(heard) => heard,
            Answer::Pending(confirm) => confirm.now_or_never().map_or(
                Heard {
                    verdict: Verdict::Silence,
                    returned: None,
                },
                Heard::from,
            ),
        }
    }
}

impl From<lapin::Result<Confirmation>> for Heard {
    fn from(answer: lapin::Result<Confirmation>) -> Self {
        let (verdict, returned) = match answer {
            Ok(Confirmation::Ack(returned)) => (Verdict::Ack, returned),
            Ok(Confirmation::Nack(returned)) => (Verdict::Nack, returned),
            Ok(Confirmation::NotRequested) => (Verdict::Silence, None),
            Err(error) => (Verdict::Error(Box::new(error)), None),
        };
        let returned = returned.map(|message| {
            let id = message.delivery.properties.message_id().as_ref();
            Box::new(Returned {
                message_id: id.map(ToString::to_string).unwrap_or_default(),
                text: format!("{} {}", message.reply_code, message.reply_text),
            })
        });
        Self { verdict, returned }
    }
}

/// Fills `answers` in the order of `group`, as far as it comes. The publishes are polled together and in order: lapin
/// then writes many to the socket at once, instead of one system call each.
async fn publish_all(channel: &Channel, group: &[Arc<Message>], own_headers: &OwnHeaders, answers: &mut Vec<Answer>) {
    let sends = group.iter().map(|message| {
        channel.basic_publish(
            short(&message.exchange),
            short(&message.routing_key),
            MANDATORY,
            &message.body,
            properties(message, own_headers),
        )
    });
    for sent in join_all(sends).await {
        answers.push(match sent {
            Ok(confirm) => Answer::Pending(confirm),
            Err(error) => Answer::Here(Heard::from(Err(error))),
        });
    }
    for answer in answers {
        if let Answer::Pending(confirm) = answer {
            *answer = Answer::Here(Heard::from(confirm.await));
        }
    }
}

/// Separates the messages whose fate is certain. In an incomplete batch a return may not have been attached to any
/// confirm yet; then only a confirm that came without any return is plainly an ack.
///
/// A broker that drops duplicates (`dedup`) routes them nowhere, so that they come back like unroutable ones.
fn judge(group: Group, answers: Vec<Heard>, complete: bool, dedup: bool) -> (Vec<(RowId, Outcome)>, Group) {
    let attached = answers.iter().filter_map(|heard| heard.returned.as_deref());
    let returned: HashMap<_, _> = attached.map(|r| (r.message_id.clone(), r.text.clone())).collect();
    let mut settled = Vec::with_capacity(group.len());
    let mut unsettled = Group::new();
    let mut answers = answers.into_iter();
    for message in group {
        let unroutable = if returned.is_empty() {
            None
        } else {
            returned.get(message.message_id.as_str())
        };
        let outcome = match (answers.next(), unroutable) {
            (_, Some(_)) if dedup && message.copies == Copies::Unknown => confirmed(message.row),
            (_, Some(text)) => Outcome::Unroutable(format!("no queue is bound for its routing key ({text})")),
            (Some(heard), None) if matches!(heard.verdict, Verdict::Ack) && (complete || heard.returned.is_none()) => {
                confirmed(message.row)
            }
            (Some(heard), None) if matches!(heard.verdict, Verdict::Nack) => Outcome::Nacked,
            _ => {
                unsettled.push(message);
                continue;
            }
        };
        settled.push((message.row, outcome));
    }
    (settled, unsettled)
}

/// What the broker confirmed: this very message without returning it, or, where it drops duplicates, an earlier copy.
#[expect(clippy::disallowed_methods, reason = "this is where confirms are told from returns")]
fn confirmed(row: RowId) -> Outcome {
    Outcome::Confirmed(Confirmed::attest(row))
}

fn by_exchange(messages: Group) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for message in messages {
        match groups.iter_mut().find(|group| group[0].exchange == message.exchange) {
            Some(group) => group.push(message),
            None => groups.push(vec![message]),
        }
    }
    groups
}

fn all_unknown(batch: &[Arc<Message>], doubt: Doubt, why: String) -> BatchReport {
    BatchReport {
        outcomes: batch
            .iter()
            .map(|message| (message.row, Outcome::Unknown(doubt)))
            .collect(),
        broken: Some(why),
    }
}
