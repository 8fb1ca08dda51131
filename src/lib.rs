//! Transactional outbox relay.

pub mod admin;
pub mod broker;
pub mod cli;
pub mod config;
pub mod health;
pub mod message;
pub mod metrics;
pub mod relay;
pub mod store;
pub mod telemetry;
