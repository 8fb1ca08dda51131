//! The whole suite in one binary: every test against real, private servers.
//!
//! What broke other relays, and what holds it off here:
//!
//! | fault | test |
//! |---|---|
//! | exchange missing, rows marked all the same | `broker::a_missing_exchange_…`, `outcomes::poison_rows_…` |
//! | unroutable and routable messages in one window | `outcomes::exactly_the_unroutable_…`, `broker::unroutable_…` |
//! | broker restarted in the middle of a run, again and again | `faults::cuts_and_kills_…`, `tests/chaos` |
//! | nack of a full queue taken for unroutable | `outcomes::a_full_queue_…` |
//! | a confirm that never comes | `broker::a_silent_broker_…` |
//! | only the channel is closed | `broker::an_exchange_deleted_…`, `broker::a_user_id_…` |
//! | broker away and back: all old rows drain | `faults::a_broker_that_is_away_…` |
//! | idle connection reaped | `faults::a_connection_that_was_reaped_while_idle_…` |
//! | key or header too long for AMQP | `outcomes::poison_rows_…` |
//! | stop while confirms are pending, while blocked; second signal | `stopping::…` |
//! | a pod's order of start and end; the rest of its grace | `lifecycle::…` |
//! | batch slower than the lease, lease lost while rows wait in memory | `replicas::a_replica_frozen_…` |
//! | a stale owner's refusal | `store::leasing::a_failure_under_a_lost_lease_…` |
//! | one poison row, many replicas | `replicas::a_poison_row_…` |
//! | thousands of rows due at once, many replicas | `replicas::ten_thousand_rows_…` |
//! | ownership moves with rows in flight | `replicas::shares_spread_…`, `replicas::a_rolling_restart_…` |
//! | two relays on two tables | `replicas::relays_on_two_tables_…` |
//! | lock held by DDL, statement timeout, deadlock, killed backend | `store::postgres_faults::…`, `store::mariadb_faults::…`, `mariadb::…`, `tests/chaos` |
//! | lower id commits later; transaction open for long | `faults::a_transaction_that_…`, `faults::a_late_commit_…` |
//! | restore into a new server, sequence begins anew | `restore::…`, `faults::rows_under_ids_long_passed_…` |
//! | database error inside the loop; database away | `faults::a_database_that_is_away_…` |
//! | backoff arithmetic at attempt 1025 | `relay::dispatch::retry` |
//! | kill -9 between publish and mark | `faults::cuts_and_kills_…`, `tests/chaos` |
//! | a refused row holds up its key only; a million rows of a blocked key | `faults::a_million_rows_…`, property tests |
//! | table or column missing at the start | `faults::a_relay_that_starts_before_the_table_…`, `store::schema::a_missing_column_…` |
//! | many rows to purge beside inserts, rows that are slow to delete, several relays that could | `purge::…` |
//! | dead letters or sent rows in the way of a poll; statistics missing or wrong | `store::plans::…` |
//! | insert storm under REPEATABLE READ (MariaDB, MySQL) | `mariadb::an_insert_storm_…`, `store::mariadb::an_insert_never_…` |
//! | partitioned table | `partitioned::…` |
//! | `UPDATE … RETURNING` is unordered, rows of one timestamp | reads are `ORDER BY id`: `main_job::…`, `store::reading::the_head_…` |
//! | a backlog of one exchange starves another | `outcomes::a_full_queue_of_one_exchange_…`, `pauses::…` |
//! | `LISTEN` silently dead behind a pooler | `surroundings::a_pooler_that_swallows_…` |
//! | wake-up beside an open insert, and beside a busy relay | `wakeup::…` |
//! | rows committed during start or reconnect | `faults::a_broker_that_is_away_…` |
//! | outages spend no attempts | `faults::a_broker_that_is_away_…`, `faults::an_alarm_…`, `tests/chaos` |
//! | a snapshot held open while many rows pass | `surroundings::a_snapshot_…` |
//! | connection budget | `surroundings::a_relay_keeps_…` |
//! | wrong clock, other time zones | `surroundings::a_relay_with_a_wrong_clock_…` |
//! | a pooler between relay and database | `surroundings::three_relays_behind_a_pooler_…` |
//! | TLS downgraded in silence, certificate or password replaced while running | `security::connections::…`, `security::identities::…` |
//! | a permission or a privilege taken back while running | `security::rights::…` |
//! | a queue that confirms what it can lose, a routing key that no binding takes | `management::…` |
//! | consumer killed between effect and acknowledgement; copies of the relay | `consumers::…` |
//! | a table that refuses the relay's own updates | `faults::a_table_that_takes_no_refusals_…` |

#![allow(clippy::unwrap_used, clippy::expect_used)] // what goes wrong in a test is to be seen

#[path = "../support/mod.rs"]
mod support;

mod broker;
mod check;
mod cloudevents;
mod consumers;
mod deployment;
mod docs;
mod duplicates;
mod errors;
mod existing_tables;
mod faults;
mod incidents;
mod keys;
mod lifecycle;
mod log_level;
mod main_job;
mod management;
mod mariadb;
mod operator;
mod outbox;
mod outcomes;
mod partitioned;
mod pauses;
mod purge;
mod replay_sent;
mod replicas;
mod restore;
mod roundtrip;
mod security;
mod stopping;
mod store;
mod surroundings;
mod traces;
mod wakeup;
