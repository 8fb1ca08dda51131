//! What the broker said of each message of a batch, and what that means.

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::join_all;
use lapin::options::BasicPublishOptions;
use lapin::{Channel, Confirmation, ErrorKind, PublisherConfirm};

use crate::broker::{Confirmed, Outcome};
use crate::message::{Copies, Message, OwnHeaders, RowId};

use super::super::executor::BeingWritten;
use super::super::properties::{properties, short};
use super::Group;

/// Unroutable messages must come back, not vanish.
const MANDATORY: BasicPublishOptions = BasicPublishOptions {
    mandatory: true,
    immediate: false,
};

/// What the broker, or lapin for it, said of one message.
enum Verdict {
    Ack,
    Nack,
    Error(Box<lapin::Error>),
    /// lapin did not take it: nothing of it was sent.
    NotTaken(Box<lapin::Error>),
    /// Nothing yet.
    Silence,
}

/// An answer, with the returned message that lapin attached to it: of this message, or of any other of the channel.
pub(super) struct Heard {
    verdict: Verdict,
    returned: Option<Box<Returned>>,
}

struct Returned {
    message_id: String,
    text: String,
}

/// The answer to one publish, as far as it has come.
pub(super) enum Answer {
    Pending(PublisherConfirm),
    Here(Heard),
}

impl Answer {
    /// Takes what has come.
    pub(super) fn look(&mut self) {
        if let Answer::Pending(confirm) = self
            && let Some(answer) = confirm.now_or_never()
        {
            *self = Answer::Here(Heard::from(answer));
        }
    }

    pub(super) fn is_here(&self) -> bool {
        matches!(self, Answer::Here(_))
    }

    pub(super) fn is_error(&self) -> bool {
        matches!(self, Answer::Here(heard) if heard.error().is_some())
    }

    pub(super) fn brings_a_return(&self) -> bool {
        matches!(self, Answer::Here(heard) if heard.returned.is_some())
    }

    /// What came between two looks at all: the return that it brings counts, but it is not believed itself.
    fn at_last(self) -> Heard {
        let silence = Heard {
            verdict: Verdict::Silence,
            returned: None,
        };
        match self {
            Answer::Here(heard) => heard,
            Answer::Pending(confirm) => match confirm.now_or_never().map(Heard::from) {
                Some(late) if late.error().is_some() => late,
                Some(late) => Heard {
                    returned: late.returned,
                    ..silence
                },
                None => silence,
            },
        }
    }
}

/// What has come, where more may be coming just now. Looked at twice: an answer that was here at the first look was preceded by
/// the one that brought its return, if it has one, and that is here at the second.
pub(super) fn heard(mut answers: Vec<Answer>) -> Vec<Heard> {
    for answer in &mut answers {
        answer.look();
    }
    answers.into_iter().map(Answer::at_last).collect()
}

/// The errors among them.
pub(super) fn errors(heard: &[Heard]) -> impl Iterator<Item = &lapin::Error> {
    heard.iter().filter_map(Heard::error)
}

impl Heard {
    fn error(&self) -> Option<&lapin::Error> {
        match &self.verdict {
            Verdict::Error(error) | Verdict::NotTaken(error) => Some(error),
            _ => None,
        }
    }

    /// Of a publish that failed.
    fn failed(error: lapin::Error) -> Self {
        let not_taken = matches!(error.kind(), ErrorKind::InvalidChannelState(..));
        let error = Box::new(error);
        Self {
            verdict: if not_taken {
                Verdict::NotTaken(error)
            } else {
                Verdict::Error(error)
            },
            returned: None,
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

/// Publishes `group` in order. The publishes are polled together: lapin then writes many to the socket at once, instead
/// of one system call each.
pub(super) async fn publish(
    _until_written: BeingWritten<'_>,
    channel: &Channel,
    group: &Group,
    own_headers: &OwnHeaders,
) -> Vec<Answer> {
    let sends = group.iter().map(|message| {
        channel.basic_publish(
            short(&message.exchange),
            short(&message.routing_key),
            MANDATORY,
            &message.body,
            properties(message, own_headers),
        )
    });
    let sent = join_all(sends).await;
    let answer = |sent: lapin::Result<PublisherConfirm>| match sent {
        Ok(confirm) => Answer::Pending(confirm),
        Err(error) => Answer::Here(Heard::failed(error)),
    };
    sent.into_iter().map(answer).collect()
}

/// Waits until all answers are here. Nothing is lost when it is dropped before.
pub(super) async fn all_here(answers: &mut [Answer]) {
    for answer in answers {
        if let Answer::Pending(confirm) = answer {
            *answer = Answer::Here(Heard::from(confirm.await));
        }
    }
}

/// Separates the messages whose fate is certain from the others, which keep their order; their `copies` say whether they were
/// sent. `answers` are all that came since nothing was on its way on the channel; `complete`: nothing is on its way now.
///
/// Otherwise a return may not have been attached to any answer yet, and only an ack that came without any return is
/// plainly one: every return is here before the answer to its own message, so that it was attached to an earlier one.
///
/// A broker that drops duplicates (`dedup`) routes them nowhere, so that they come back like unroutable ones.
pub(super) fn judge(group: Group, answers: Vec<Heard>, complete: bool, dedup: bool) -> (Vec<(RowId, Outcome)>, Group) {
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
            (Some(heard), None) if matches!(heard.verdict, Verdict::NotTaken(_)) => {
                unsettled.push(message);
                continue;
            }
            _ => {
                unsettled.push(perhaps_there(message));
                continue;
            }
        };
        settled.push((message.row, outcome));
    }
    (settled, unsettled)
}

/// A message that the broker may have taken, though it has not said so.
pub(super) fn perhaps_there(mut message: Arc<Message>) -> Arc<Message> {
    if message.copies.none_of_this_relay() {
        Arc::make_mut(&mut message).copies = Copies::Unknown;
    }
    message
}

/// What the broker confirmed: this very message without returning it, or, where it drops duplicates, an earlier copy.
#[expect(clippy::disallowed_methods, reason = "this is where confirms are told from returns")]
fn confirmed(row: RowId) -> Outcome {
    Outcome::Confirmed(Confirmed::attest(row))
}

#[cfg(test)]
mod tests {
    use lapin::ChannelState;

    use super::*;
    use crate::message::OutboxRow;
    use crate::message::tests::{row, rules};

    fn message(id: i64) -> Arc<Message> {
        let row = OutboxRow { id: RowId(id), ..row() };
        let mut message = Message::from_row(row, &rules()).expect("a good row");
        message.copies = Copies::None;
        Arc::new(message)
    }

    #[test]
    fn what_lapin_did_not_take_is_no_copy() {
        let gone = lapin::Error::from(ErrorKind::InvalidChannelState(ChannelState::Error, "basic.publish"));
        let lost = lapin::Error::from(ErrorKind::MissingHeartbeatError);
        let group = vec![message(1), message(2), message(3)];
        let answers = vec![
            Heard::failed(lost),
            Heard::failed(gone),
            Heard {
                verdict: Verdict::Silence,
                returned: None,
            },
        ];
        let (settled, unsettled) = judge(group, answers, false, true);
        assert_eq!(settled, []);
        let copies: Vec<_> = unsettled.iter().map(|message| message.copies).collect();
        assert_eq!(copies, [Copies::Unknown, Copies::None, Copies::Unknown]);
    }
}
