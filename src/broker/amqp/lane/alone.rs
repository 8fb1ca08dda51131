//! After a channel was closed: what was on it goes again, group by group, each waited for, until the message that the
//! broker refuses is found.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::broker::{BatchReport, Doubt, Outcome};
use crate::message::{Message, RowId};

use super::super::connection::{ACCESS_REFUSED, Connection, ExchangeCheck, soft_error};
use super::answers::{self, Answer, Heard};
use super::{AmqpLane, Group, REOPEN_ATTEMPTS, REOPEN_PAUSE, within};

/// What publishing a group of messages led to.
pub(super) struct Attempt {
    /// Messages whose fate is known.
    settled: Vec<(RowId, Outcome)>,
    /// The others, in their order.
    unsettled: Group,
    end: End,
}

pub(super) enum End {
    /// Every confirm came.
    Complete,
    /// The broker closed the channel, for this reason, because of one of the messages.
    ChannelClosed { code: u16, text: String },
    /// The channel was closed before anything was sent on it.
    ChannelGone,
    /// The connection is of no more use.
    Broken(Doubt, String),
}

/// Sets aside the messages whose exchange is missing; the others are ready to be published.
pub(super) async fn check_exchanges(
    connection: &Connection,
    batch: &[Arc<Message>],
) -> Result<(Group, Vec<(RowId, Outcome)>), String> {
    let mut missing: HashMap<&str, String> = HashMap::new();
    let mut good = Group::with_capacity(batch.len());
    let mut outcomes = Vec::new();
    let mut last_good = None;
    for message in batch {
        let exchange = message.exchange.as_str();
        if last_good != Some(exchange) && !missing.contains_key(exchange) {
            match connection.look_at_exchange(exchange).await {
                Ok(ExchangeCheck::Present) => last_good = Some(exchange),
                Ok(ExchangeCheck::Missing(text)) => {
                    missing.insert(exchange, text);
                }
                Err(error) => return Err(error.to_string()),
            }
        }
        match missing.get(exchange) {
            Some(text) => outcomes.push((message.row, Outcome::NoExchange(text.clone()))),
            None => good.push(message.clone()),
        }
    }
    Ok((good, outcomes))
}

impl AmqpLane {
    /// Messages that may be refused go alone; the order stays.
    pub(super) fn groups(&self, messages: &[Arc<Message>]) -> VecDeque<Group> {
        let alone = self.connection.trust().alone(messages);
        let mut groups: VecDeque<Group> = VecDeque::new();
        let mut open = false;
        for (message, alone) in messages.iter().zip(alone) {
            match groups.back_mut().filter(|_| open && !alone) {
                Some(group) => group.push(message.clone()),
                None => groups.push_back(vec![message.clone()]),
            }
            open = !alone;
        }
        groups
    }

    /// Those that the broker has not refused for what they are a moment ago; of the others it is told.
    pub(super) fn not_refused(&self, mut group: Group, report: &mut BatchReport) -> Group {
        let refused = self.connection.trust().refuse(&mut group);
        let told = refused.into_iter().map(|(row, text)| (row, Outcome::Refused(text)));
        report.outcomes.extend(told);
        group
    }

    /// Settles all groups. Nothing else may be under way on the channel.
    pub(super) async fn one_by_one(&mut self, mut groups: VecDeque<Group>, report: &mut BatchReport) {
        while let Some(group) = groups.pop_front() {
            let group = self.not_refused(group, report);
            match &group[..] {
                [] => continue,
                [message] => self.connection.trust().ask(message),
                _ => {}
            }
            let attempt = self.attempt(group).await;
            match self.after(attempt, report).await {
                Ok(again) => {
                    for group in again.into_iter().rev() {
                        groups.push_front(group);
                    }
                }
                Err((unsettled, doubt, why)) => {
                    let rest = unsettled.into_iter().flatten().chain(groups.into_iter().flatten());
                    report.broken(doubt, rest, why);
                    return;
                }
            }
        }
    }

    /// Publishes `group` in order and waits for its confirms.
    async fn attempt(&mut self, group: Group) -> Attempt {
        let mut answers = None;
        let (writing, channel, own_headers) = (self.connection.writing(), &self.channel, &self.own_headers);
        let publishing = async {
            let until_written = writing.begin().await;
            let answers = answers.insert(Vec::new());
            *answers = answers::publish(until_written, channel, &group, own_headers).await;
            answers::all_here(answers).await;
        };
        let timed_out = within(self.confirm_timeout, &self.connection, publishing)
            .await
            .is_none();
        match answers {
            Some(answers) => self.judged(group, answers, timed_out),
            // Nothing was sent, so that no confirm is missing.
            None => Attempt {
                settled: Vec::new(),
                unsettled: group,
                end: End::Broken(Doubt::Disconnected, no_confirm(self.confirm_timeout)),
            },
        }
    }

    /// What became of a group after which nothing is under way, or nothing more comes.
    pub(super) fn judged(&self, group: Group, answers: Vec<Answer>, timed_out: bool) -> Attempt {
        let heard = answers::heard(answers);
        let end = self.end(&heard, timed_out);
        let complete = matches!(end, End::Complete);
        let (settled, unsettled) = answers::judge(group, heard, complete, self.own_headers.dedup.is_some());
        Attempt {
            settled,
            unsettled,
            end,
        }
    }

    fn end(&self, heard: &[Heard], timed_out: bool) -> End {
        if timed_out {
            return End::Broken(Doubt::Timeout, no_confirm(self.confirm_timeout));
        }
        let errors = || answers::errors(heard);
        let Some(first) = errors().next() else {
            return End::Complete;
        };
        if !self.connection.connected() {
            return End::Broken(Doubt::Disconnected, first.to_string());
        }
        match errors().find_map(soft_error) {
            Some((code, text)) => End::ChannelClosed { code, text },
            None if errors().count() == heard.len() && !self.channel.status().connected() => End::ChannelGone,
            None => End::Broken(Doubt::Disconnected, first.to_string()),
        }
    }

    /// Tells what is settled. Returns the groups that must go again; or, if the connection is of no more use, with what
    /// is not settled, why.
    pub(super) async fn after(
        &mut self,
        attempt: Attempt,
        report: &mut BatchReport,
    ) -> Result<Vec<Group>, (Vec<Group>, Doubt, String)> {
        report.outcomes.extend(attempt.settled);
        let unsettled = attempt.unsettled;
        let disconnected = |why: String| (Doubt::Disconnected, why);
        let (again, usable) = match attempt.end {
            End::Complete if unsettled.is_empty() => return Ok(Vec::new()),
            End::Complete => (vec![unsettled], Err(disconnected("an answer is missing".to_owned()))),
            End::ChannelClosed { code, text } => {
                let again = self.after_refusal(unsettled, code, &text, report);
                (again, self.reopen().await.map_err(disconnected))
            }
            End::ChannelGone => {
                self.gone += 1;
                // Once is an accident of the channel; more often, something is wrong with the connection.
                let usable = match self.gone {
                    1 => self.reopen().await.map_err(disconnected),
                    _ => Err(disconnected("the channel closes by itself".to_owned())),
                };
                (vec![unsettled], usable)
            }
            End::Broken(doubt, text) => (vec![unsettled], Err((doubt, text))),
        };
        match usable {
            Ok(()) => Ok(again),
            Err((doubt, why)) => Err((again, doubt, why)),
        }
    }

    /// Decides what to do with the messages that were on a channel when the broker closed it.
    fn after_refusal(&self, unsettled: Group, code: u16, text: &str, report: &mut BatchReport) -> Vec<Group> {
        let one_exchange = unsettled.windows(2).all(|pair| pair[0].exchange == pair[1].exchange);
        let Some(first) = unsettled.first() else {
            return Vec::new();
        };
        if !one_exchange {
            let groups = unsettled.chunk_by(|one, next| one.exchange == next.exchange);
            return groups.map(<[_]>::to_vec).collect();
        }
        if code == 404 {
            self.connection.missing(&first.exchange, text);
            let refused = |m: &Arc<Message>| (m.row, Outcome::NoExchange(text.to_owned()));
            report.outcomes.extend(unsettled.iter().map(refused));
            return Vec::new();
        }
        self.connection.trust().suspect(&first.exchange);
        if unsettled.len() == 1 {
            let text = with_advice(code, text);
            self.connection.trust().refused(first, code, &text);
            report.outcomes.push((first.row, Outcome::Refused(text)));
            return Vec::new();
        }
        unsettled.into_iter().map(|message| vec![message]).collect()
    }

    /// A new channel on the same connection. lapin may still be busy with the end of the old one (and reuses its
    /// number), so that the first attempt can fail.
    async fn reopen(&mut self) -> Result<(), String> {
        let mut why = String::new();
        for _ in 0..REOPEN_ATTEMPTS {
            match within(self.confirm_timeout, &self.connection, self.connection.channel()).await {
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

    /// What took a message is trusted, and an exchange no longer suspected, once it is known which one it refused.
    pub(super) fn trust_confirmed(&self, batch: &[Arc<Message>], report: &BatchReport) {
        if report.broken.is_some() {
            return;
        }
        let confirmed = |(row, outcome): &(RowId, Outcome)| matches!(outcome, Outcome::Confirmed(_)).then_some(*row);
        let confirmed: HashSet<RowId> = report.outcomes.iter().filter_map(confirmed).collect();
        for message in batch.iter().filter(|message| confirmed.contains(&message.row)) {
            self.connection.trust().taken(message);
        }
    }
}

/// A refusal for want of a permission, and what to do about it. There are others of the same code: an internal exchange.
fn with_advice(code: u16, text: &str) -> String {
    match code == ACCESS_REFUSED && text.contains("refused for user") {
        true => format!(
            "{text}: give the broker's user write permission on the exchange, `migrate --print-grants` prints the command"
        ),
        false => text.to_owned(),
    }
}

pub(super) fn no_confirm(timeout: Duration) -> String {
    format!("no confirm within {timeout:?}")
}
