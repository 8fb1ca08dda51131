//! Transactional outbox relay: publishes the committed rows of an outbox table to RabbitMQ, each confirmed, in order
//! per key, and marks them sent. This page is the architecture; how to use the program is in the README.
//!
//! # One row's way
//!
//! ```text
//!   outbox table                                                                         RabbitMQ
//!        │                                                                                  ▲ │
//!        │ plain SELECT                                                   publish, mandatory│ │confirm, return
//!        ▼                                                                                  │ ▼
//!   store ──rows──▶ relay::reader ──▶ relay::dispatch ──batch──▶ relay::publisher ──▶ broker::amqp
//!     ▲              head, probe,      who may go now,            4 lanes, each one    one channel a lane,
//!     │              scan, fetch       who waits (pure)           batch at a time      all confirms awaited
//!     │                                   │       ▲                          │
//!     └── relay::settler ◀──marks, ───────┘       └───── one outcome ────────┘
//!         one write at a time  refusals                  for every message
//! ```
//!
//! `relay/core.rs` is the loop in the middle. It owns all state and turns on events: something was read, a lane
//! reported, the connection came or went, a write was done, a timer is due. Reading, publishing and marking are tasks
//! of their own, so that one batch is marked while the next awaits its confirms and a third is read.
//!
//! A row is read, becomes a [`message::Message`] (or is found to be none, and is a dead letter without having been
//! tried), waits for its turn, travels in a batch on one lane, and comes back with one [`broker::Outcome`]. Confirmed
//! rows are marked some milliseconds later, many with one statement; the next row of the key does not wait for that.
//! Refusals are written with the time of the next try, or as dead letters, and for that the key does wait. An outcome
//! that says nothing about the row (nack, timeout, connection lost) is written nowhere.
//!
//! Bodies are compressed in front of a lane, on a thread where that holds nobody up. What is known of earlier copies of a
//! message ([`message::Copies`]) travels with it, for the header that tells repetitions, and because a broker that drops
//! duplicates returns them: only after an outcome that was unknown does such a return count as delivered.
//!
//! Where OpenTelemetry's variables ask for spans, one for each publish is begun in front of the lane and ended with the
//! outcome ([`traces`]). The message that goes to the lane is then one with the span's `traceparent`, which shares its body.
//!
//! # Rooms
//!
//! | room | what it does | what is in no other room |
//! |---|---|---|
//! | [`cli`] | one file for each command, exit codes | |
//! | [`config`] | every variable in one table; all mistakes at once | reading the environment |
//! | [`message`] | from a row to a message; everything a broker would refuse for the message's own sake; CloudEvents | |
//! | [`store`] | the table behind [`store::Store`]; PostgreSQL, MariaDB and MySQL, SQLite, migrations | SQL |
//! | `store::layout`, `store::source` | a table that the application had already: which of its columns hold what | the application's names |
//! | [`broker`] | RabbitMQ behind [`broker::Broker`], [`broker::Session`], [`broker::Lane`]; its management plug-in ([`broker::management`]), for `check` and `status` alone | lapin, AMQP types |
//! | [`relay`] | the loop and its tasks | order, retries, bounds |
//! | [`relay::dispatch`] | the state machine: who may go, who waits | decisions about a row |
//! | [`relay::reader`], [`relay::holes`] | what is read when; ids that were skipped | the cursor |
//! | [`store::operator`] | what a person asks of the table: beside [`store::Store`], not in it | |
//! | [`status`] | the report that `status` and `/status` give | |
//! | [`admin`], [`health`] | HTTP endpoints and what they tell | |
//! | [`metrics`], [`rates`], [`slowest`] | all metrics; how fast they grow; whether the database is slow | names of metrics |
//! | [`telemetry`] | logging | what must never be logged |
//! | [`traces`] | a span for each publish, sent to a collector | OpenTelemetry |
//! | [`tls`] | certificates from files; what to do about a failed handshake | |
//! | [`systemd`] | readiness and watchdog of a service | |
//!
//! [`relay::dispatch`] has no I/O, no clock, no task, no SQL and no AMQP type: it is told what happened and when.
//!
//! # Invariants
//!
//! The tests named here are in `tests/suite`, and run against real servers. Beside them, property tests drive the state
//! machine and the reading plan through thousands of random histories (`relay/dispatch/tests`), with seeded bugs that
//! they must notice; and `tests/chaos` draws faults at random against several relays.
//!
//! 1. *No row is marked without the positive confirm of its own message.* The type says so: [`store::Store::mark_sent`] takes
//!    [`broker::Confirmed`], which only a lane makes (a lint forbids it elsewhere).
//!    `broker::unroutable_messages_are_told_apart_exactly_on_a_quorum_queue` and `…_on_a_classic_queue`,
//!    `outcomes::exactly_the_unroutable_become_dead_letters_…`.
//! 2. *First copies of a key's messages leave in `id` order* (`strict`). `faults::cuts_and_kills_lose_nothing_and_…`,
//!    `faults::a_late_commit_goes_before_the_next_row_of_its_key_…`.
//! 3. *An outcome from an old connection settles nothing*: [`relay::dispatch::Generation`].
//!    `faults::cuts_and_kills_…`, `broker::a_cut_leaves_every_message_confirmed_or_unknown`.
//! 4. *No transaction is open while the broker is awaited*: every method of [`store::Store`] is one statement or a
//!    few short ones, each with a bound. `store::postgres_faults::a_locked_table_costs_one_timeout_and_no_backend`,
//!    `store::mariadb_faults::a_locked_table_…`, `store::mariadb::an_insert_never_waits_for_the_relay`.
//! 5. *A refusal never overwrites a row that is sent or given up.* `store::writing::a_late_failure_takes_nothing`,
//!    `a_dead_letter_that_was_confirmed_is_sent`.
//! 6. *An outage spends no attempts and grows no memory.* `faults::an_alarm_costs_latency_only`,
//!    `faults::a_broker_that_is_away_…`, `outcomes::a_full_queue_spends_no_attempts_…`.
//! 7. *One bad row costs its own key only.* `outcomes::poison_rows_become_dead_letters_…`,
//!    `faults::a_million_rows_of_a_blocked_key_…`, `broker::a_refused_exchange_costs_only_its_own_messages`,
//!    `broker::what_is_refused_by_the_thousand_costs_neither_…`.
//! 8. *Every wait has a bound.* `broker::a_silent_broker_…`, `broker::a_peer_that_never_answers_…`,
//!    `stopping::a_stop_while_the_broker_takes_nothing_ends_with_the_grace`.
//! 9. *No secret and no body is in a log or an error.* `store::postgres_faults::errors_hold_no_password_and_no_body`,
//!    `store::mariadb_faults::errors_…`,
//!    `broker::addresses_are_tried_in_turn_…`, the tests of [`config`] and [`telemetry`].
//! 10. *A share has one owner at a time, and a refusal decided under a lost lease is not written.* `store::leasing::…`,
//!     `replicas::…`.
//! 11. *The end of any task is noticed*: [`relay::run`] then ends with [`relay::Ended::Broken`], and the process with 1.
//!
//! # Why a cursor, probes and sweeps
//!
//! *The cursor* (`id > last id read`) is speed: a poll costs the same however large the table is. Alone it loses rows,
//! because a transaction takes its ids when it inserts and shows them when it commits: a lower id can appear later.
//!
//! *Probes* close that gap quickly. Ids that the cursor skipped are remembered ([`relay::holes`]) and looked at again,
//! after each read of new rows and *before* those rows are used. Without new rows that happens every 100 ms.
//! A hole is forgotten when it has a row, or when every transaction has ended that was open 10 s after it was seen
//! (by PostgreSQL's snapshots). In MariaDB and MySQL only a privileged user is told of open transactions: there, none is
//! taken to be open for longer than a minute. SQLite has one writer at a time and needs none of this.
//!
//! *The sweep* is the truth: every `RELAY_POLL_SWEEP_INTERVAL` all unsent rows below the cursor are walked, ids and
//! keys only. Whatever became of the ids (a jump of the sequence, a restored backup, a row replayed by hand, a run of
//! more than 10,000 missing ids, which is not watched), no unsent row is missed for longer than a sweep. The same walk
//! brings back the rows of a key that were left in the table. After it, rows that their keys wait for are
//! read again from the table, so that a person can make them due, or take them away ([`relay::dispatch::Dispatcher::look_again`]).
//!
//! *The wake-up* ([`store::Wakeups`], PostgreSQL, optional) only shortens the pause before the next poll: nothing depends on it.
//!
//! # How another table is read
//!
//! The statements of a store are written once, for the columns of the table that `migrate` makes. Another table stands behind
//! a subquery that has those columns (`store::source`): names, templates and headers become expressions in it, columns
//! that are not there become nulls, and refusals come from the relay's own table by an outer join. Databases merge such a
//! subquery into the statement around it, so that the indexes of the application's table are used. What is written goes
//! to the table itself, under its own names. The rooms above the store know nothing of this.
//!
//! Where a table has no whole number to order its rows by, the relay gives them one, in a table of its own, before it reads
//! them: where the last [`store::Store::head`] came to the end of the rows that have one, the next first looks for rows
//! without one, and then reads. So an outage with many waiting rows costs one look, and numbers grow in the order of the looks: a row is
//! never before one that was found earlier. One relay looks at a time; a look that fails loses no rows that were read, rests as one
//! that found nothing, and one that takes too long is followed by looks without an order. A stop with a drain waits for a head
//! that began with a look that found nothing ([`store::Store::owes_a_look`]): only that shows what another relay numbered
//! meanwhile, too. A mark removes the number with the row, in one statement or transaction. Rows
//! that are found without a number at any time get one: for such tables this is the truth that the sweep is for others.
//! `existing_tables::…`, and the store's own cases over such tables in `store::existing::…`.
//!
//! # When a lane believes a confirm
//!
//! The client library attaches a returned (unroutable) message to whichever confirm of the channel completes next, not to
//! its own. So the answer to one message cannot be believed alone. What helps is that a return comes before the confirm of
//! its message, and that every confirm takes a return with it while there are any. So
//!
//! 1. if all confirms of a batch are in, and nothing that was confirmed on the channel brought a return, none of the batch
//!    was returned, though batches behind it may still be on their way;
//! 2. once nothing is on its way on the channel, every return has been attached to some confirm, and the returned
//!    `message_id`s, taken as a set, are exactly the unroutable messages.
//!
//! A lane judges by the first as long as nothing comes back; then it sends nothing more until the second holds. It does not
//! judge while it is writing a batch to the socket, whose answers it cannot see yet, nor begin one in an alarm. Messages of an exchange
//! that refused one go alone, over connections, until it is found, and so does the first of each exchange (`broker/amqp/trust.rs`).
//! That is why no two messages in flight have the same `message_id`, why a channel belongs to one task, and why a channel that ended with
//! an error settles only what was answered beyond doubt. Only the channel ends then: the client library's answer to the broker
//! is kept behind what was given to it before (`broker/amqp/executor.rs`). `broker::following::…`. A message whose publish was started is never
//! dropped while the connection lives on, since it may arrive all the same: after a confirm timeout the connection is
//! closed, its messages are unknown but for those whose publish was not started (`broker::unsent::…`), and they go again
//! on the next one.
//!
//! Many messages per batch and four lanes are what keeps this fast; see [`relay::lanes`].
//!
//! # Why the order holds
//!
//! In `strict`, per key: (a) a row is published only when no other of its key is in flight and no lower row that is
//! known must wait; (b) it stops being in flight only by an outcome, and an unknown one comes only after the
//! connection was closed, so that nothing of it can still arrive behind its successor; (c) rows are known in `id` order:
//! the head is read in order, and a lower row that could have been committed before a higher one of its key is found
//! by the probe between reading the higher and using it, provided that writers of the key are serialised before the
//! insert, and that the lower id is among those that are watched (not one of a run of more than 10,000 missing ids, nor
//! more than 1,000 below the first unsent row when the relay starts: then the sweep sends it, perhaps behind); (d) a dead letter is in
//! the table before the key goes on, so that a crash does not send it behind; (e) a key that has to wait keeps its
//! first row and an id from which on the rest is in the table only, and reads it again from there. After a crash,
//! confirmed rows that were not marked are sent again, in order: copies come late, first copies do not.
//!
//! *Pauses* ([`relay::dispatch::Paused`]): rows of a paused exchange are not held, only the keys they have, as later rows of
//! these must not pass them. When an exchange is resumed everything unsent is read from the beginning, in order, before
//! anything newer. Nothing is published before it is known what is paused. `pauses::…`, property tests.
//!
//! In `pipelined`, messages of a key that are in flight share a lane (order holds per channel), and a refusal of one
//! cannot hold back those behind it. In `none`, keys are ignored.
//!
//! # Why the order holds across a change of owner
//!
//! The rows are divided into shares by key, and a share is leased to one relay ([`store::Store::lease`], `relay/leases.rs`).
//! 1. Any relay publishes a row of a key only when every lower row of it that it knows is confirmed or a written dead
//!    letter. This holds for an owner that does not know yet that it lost its lease (a zombie) as well.
//! 2. A relay that takes a share over knows nothing of it, and reads it from the lowest unsent row on.
//! 3. So before anyone publishes row n of a key for the first time, row n - 1 has been confirmed to somebody: it is in its
//!    queues. What a zombie publishes late is a row whose predecessors are all there: at worst a copy, never a first one
//!    out of order.
//! 4. A zombie's *refusals* could skip a row: they are written only under the epoch of the lease they were decided under,
//!    which grows with every change of owner. Its *marks* are true whoever writes them: a confirmed row is sent.
//! 5. A relay stops publishing when four fifths of the lease have passed since before it asked for it, by its own
//!    monotonic clock; so copies are few. A share that is handed over has nothing in flight, so there are none.
//!
//! Assumed of the broker: a confirm means that the message is in every queue it was routed to, and a queue keeps the order
//! in which it took messages. Assumed of the machine: its monotonic clock does not stand still while the process can run.
//! `replicas::a_replica_frozen_beyond_its_lease_…`, `replicas::shares_spread_over_…`, `store::leasing::…`.
//!
//! # What bounds memory
//!
//! With F = `RELAY_PUBLISH_IN_FLIGHT` and B = `RELAY_POLL_BATCH_SIZE`:
//!
//! | what | bound |
//! |---|---|
//! | messages published and not settled | F, in batches of F / 4, four on a lane at the most, where only `pipelined` keys need more than one |
//! | rows confirmed and not marked, without body | below 3 F (see the next section) |
//! | rows waiting or in flight | 2 F + 2 B |
//! | of one key | (F + B) / 2, at least 16, and 64 while more than half of those are held; with `pipelined` 2 F + B, and 64 once so many are held; the rest is left in the table |
//! | bodies, as events where they are such | nothing is read above `RELAY_PUBLISH_IN_FLIGHT_BYTES`: that, and one page of bodies up to 16 KiB each; larger ones are fetched when there is room, one alone if need be; what is read can grow by what makes an event of it, a third for `data_base64` |
//! | rows that must wait (backoff, delayed), without body | 250,000, about 50 MB, half of it for rows without a key, which are then left to the sweep; with so many keys waiting no new rows are read |
//! | rows without a key due in more than a minute | not held, a later sweep finds them |
//! | keys with a row of a paused exchange, without the row | a million, about 20 MB; above that nothing new is read |
//! | skipped ids | 10,000 (100,000 until they are looked at), the lowest given up first and left to the sweep |
//! | under way between the tasks | one read, one write, four batches per lane |
//!
//! While F of them are ready to go, rows are read only once B more have room, so that pages are whole ones;
//! with `pipelined` for 50 ms only once none of them need be left in the table for it. Rows that
//! probes find are few and taken in beyond these bounds. The client library holds a copy of what it is
//! about to write to the socket.
//!
//! # What is sent twice at most
//!
//! A batch is published only while fewer than 2 F rows are confirmed and unmarked, and never takes what is in flight
//! above F. A confirm only moves a row from the one to the other. So in flight and unmarked together stay below 3 F at
//! all times, and that is what a crash of the relay sends again at most: 3,000 messages with the defaults. A lost
//! connection sends again at most what was in flight on it: F. A stop that completes (exit code 0) sends nothing again.
//! `faults::cuts_and_kills_…` and `stopping::ten_stops_under_load_…` count.
//!
//! A crash of the *database server* can forget marks: they are written without waiting for the disk
//! (`synchronous_commit = off` for the mark alone; SQLite with `synchronous = NORMAL`; in InnoDB it is the server's own
//! setting, `innodb_flush_log_at_trx_commit`). Those rows are sent again.
//!
//! # Glossary
//!
//! * *outbox*: the table; *relay*: this program; *row*: one row of it, *message*: what is made of it.
//! * *key*: the value of `ordering_key`. *blocked key*: one whose next row must wait.
//! * *confirm*: the broker's answer that it took a message (ack) or did not (nack). *return*: a message that no queue
//!   is bound for comes back. *settled*: the outcome is known, and what follows from it is written.
//! * *lane*: one AMQP channel with the task that owns it. *generation*: the number of a connection.
//! * *attempt*: a refusal that counts (unroutable, no exchange, refused). *backoff*: the wait after a refusal.
//! * *dead letter*: a row that was given up, `dead_at` is set. It stays in the table.
//! * *cursor*, *head*: the highest id read; the rows above it. *hole*: an id that was skipped. *probe*: a look at holes.
//!   *scan*: a walk over unsent rows below the cursor. *sweep*: a scan of all of them, now and then.
//! * *stub*: a row without its body. *left*: in the table only, though known of.
//! * *backlog*: what is unsent. *mark*: `sent_at` is set, or the row deleted (`RELAY_OUTBOX_ON_SENT`).

pub mod admin;
pub mod broker;
pub mod cli;
pub mod config;
pub mod health;
pub mod message;
pub mod metrics;
pub mod rates;
pub mod relay;
pub mod slowest;
pub mod status;
pub mod store;
pub mod systemd;
pub mod telemetry;
pub mod tls;
pub mod traces;
