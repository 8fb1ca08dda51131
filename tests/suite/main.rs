//! The whole suite in one binary: every test against real, private servers.

#[path = "../support/mod.rs"]
mod support;

mod broker;
mod main_job;
mod outbox;
