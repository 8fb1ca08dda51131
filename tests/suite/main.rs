//! The whole suite in one binary: every test against real, private servers.

#![allow(clippy::unwrap_used, clippy::expect_used)] // what goes wrong in a test is to be seen

#[path = "../support/mod.rs"]
mod support;

mod broker;
mod docs;
mod faults;
mod main_job;
mod outbox;
mod outcomes;
mod replicas;
mod stopping;
mod store;
