//! A lane's task while a batch is being compressed.

use async_trait::async_trait;
use tokio::runtime::Builder;
use tokio::time::timeout;

use super::*;
use crate::message::tests::{row, rules};
use crate::message::{Coding, OutboxRow, RowId};

const MIN_BYTES: u64 = 50;

/// For what comes at once.
const SOON: Duration = Duration::from_secs(10);

/// Tells what it is given, and answers when it is told to.
struct Told {
    begun: mpsc::UnboundedSender<Batch>,
    answers: mpsc::UnboundedReceiver<BatchReport>,
    answer: Option<BatchReport>,
}

#[async_trait]
impl Lane for Told {
    fn begin(&mut self, batch: Batch) {
        self.begun.send(batch).expect("the test listens");
    }

    async fn wait(&mut self) {
        if self.answer.is_none() {
            self.answer = self.answers.recv().await;
        }
    }

    async fn report(&mut self) -> BatchReport {
        self.wait().await;
        self.answer.take().expect("the test answers")
    }
}

/// The ends of a lane's task.
struct Ends {
    batches: mpsc::Sender<Batch>,
    begun: mpsc::UnboundedReceiver<Batch>,
    answers: mpsc::UnboundedSender<BatchReport>,
    events: mpsc::Receiver<Event>,
}

impl Ends {
    /// Those of a task that was spawned.
    fn new() -> Self {
        let (told, begun) = mpsc::unbounded_channel();
        let (answers, told_to) = mpsc::unbounded_channel();
        let (events, seen) = mpsc::channel(8);
        let (batches, taken) = mpsc::channel(LANE_DEPTH);
        let (broken, _) = mpsc::channel(1);
        let task = LaneTask {
            lane: Box::new(Told {
                begun: told,
                answers: told_to,
                answer: None,
            }),
            compression: Some(Compression {
                coding: Coding::Gzip,
                min_bytes: MIN_BYTES,
            }),
            traces: None,
            number: 0,
            generation: 1,
            metrics: Arc::new(Metrics::new()),
            events,
            broken,
        };
        tokio::spawn(task.run(taken));
        Self {
            batches,
            begun,
            answers,
            events: seen,
        }
    }

    /// Those of a task that has sent row 1, is to compress row 2, and has row 3 behind it.
    async fn compressing() -> Self {
        let mut ends = Self::new();
        ends.give(1, 10).await;
        assert!(!ends.begun(1).await);
        ends.give(2, 90).await;
        ends.taken_up().await;
        ends.give(3, 10).await;
        ends
    }

    /// A batch of one row, with a body of so many bytes.
    async fn give(&self, id: i64, bytes: usize) {
        let row = OutboxRow {
            id: RowId(id),
            payload: crate::message::Payload::Loaded(vec![b'x'; bytes]),
            ..row()
        };
        let message = Message::from_row(row, &rules()).expect("a good row");
        self.batches
            .send(vec![Arc::new(message)])
            .await
            .expect("it takes batches");
    }

    /// The task has taken all that it was given.
    async fn taken_up(&self) {
        let room = timeout(SOON, self.batches.reserve_many(LANE_DEPTH)).await;
        drop(room.expect("it takes them").expect("it runs"));
    }

    /// The lane has begun the batch of this row; whether it is compressed.
    async fn begun(&mut self, id: i64) -> bool {
        let batch = timeout(SOON, self.begun.recv())
            .await
            .expect("it begins")
            .expect("it runs");
        assert_eq!(batch[0].row, RowId(id));
        batch[0].properties.content_encoding.is_some()
    }

    /// Answers for the oldest batch. Returns what the relay is told.
    async fn answer(&mut self, id: i64, outcome: Outcome, broken: Option<&str>) -> (usize, Vec<(i64, Outcome)>) {
        let report = BatchReport {
            batches: 1,
            outcomes: vec![(RowId(id), outcome)],
            broken: broken.map(str::to_owned),
        };
        self.answers.send(report).expect("it runs");
        let event = timeout(SOON, self.events.recv()).await.expect("it tells");
        match event {
            Some(Event::Report { batches, outcomes, .. }) => (
                batches,
                outcomes.into_iter().map(|(row, outcome)| (row.0, outcome)).collect(),
            ),
            _ => panic!("no report"),
        }
    }
}

/// Runs `test` where nothing is compressed before the sender that it is given is dropped.
fn with_no_thread_to_compress<F: Future<Output = ()>>(test: impl FnOnce(std::sync::mpsc::Sender<()>) -> F) {
    let runtime = Builder::new_current_thread()
        .enable_time()
        .max_blocking_threads(1)
        .build()
        .expect("a runtime");
    let (free, busy) = std::sync::mpsc::channel::<()>();
    runtime.block_on(async {
        // Ends with an error, when the sender is gone.
        tokio::task::spawn_blocking(move || busy.recv().is_err());
        test(free).await;
    });
}

#[test]
fn what_is_under_way_goes_on_while_the_next_batch_is_compressed() {
    with_no_thread_to_compress(async |free| {
        let mut ends = Ends::compressing().await;
        let told = ends.answer(1, Outcome::Nacked, None).await;
        assert_eq!(told, (1, vec![(1, Outcome::Nacked)]));
        assert!(ends.begun.is_empty(), "no batch overtakes another");
        drop(free);
        assert!(ends.begun(2).await);
        assert!(!ends.begun(3).await);
    });
}

#[test]
fn what_is_being_compressed_when_the_connection_fails_was_not_sent() {
    with_no_thread_to_compress(async |free| {
        let mut ends = Ends::compressing().await;
        let lost = Outcome::Unknown(Doubt::Disconnected);
        let (batches, outcomes) = ends.answer(1, lost.clone(), Some("cut")).await;
        let unsent = Outcome::Unknown(Doubt::Unsent);
        assert_eq!(outcomes, [(1, lost), (2, unsent.clone()), (3, unsent)]);
        assert_eq!(batches, 3);
        drop(free);
    });
}
