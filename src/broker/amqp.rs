//! RabbitMQ (AMQP 0-9-1) through lapin, with a guard for each of its traps.

mod connection;
mod executor;
mod lane;
mod permissions;
mod properties;
mod trust;

use std::time::Duration;

use async_trait::async_trait;

use crate::broker::{Broker, BrokerError, Connected, Lane};
use crate::config::{Secret, Tls, broker_urls_now, redacted_url};
use crate::message::OwnHeaders;

use connection::Connection;
use trust::Refusals;

pub use permissions::{set_permissions, vhost};
pub use properties::properties;

/// How to reach the broker and how to use it.
#[derive(Debug, Clone)]
pub struct AmqpOptions {
    /// Tried in turn; those from a file are read again before each attempt.
    pub urls: Vec<Secret>,
    /// Of those with `amqps`.
    pub tls: Tls,
    /// Bound of TCP, TLS and AMQP handshake together, per address.
    pub connect_timeout: Duration,
    /// Bound of the wait for a batch's confirms.
    pub confirm_timeout: Duration,
    /// Channels per connection, at least 1.
    pub lanes: usize,
    /// Headers that the relay adds.
    pub own_headers: OwnHeaders,
}

/// A RabbitMQ broker or cluster.
pub struct Amqp {
    options: AmqpOptions,
    refusals: Refusals,
}

impl Amqp {
    /// Does not connect yet.
    pub fn new(options: AmqpOptions) -> Self {
        Self {
            options,
            refusals: Refusals::default(),
        }
    }

    async fn connect_to(&self, url: &Secret) -> Result<Connected, BrokerError> {
        let connection = Connection::open(
            url,
            &self.options.tls,
            self.options.connect_timeout,
            self.refusals.clone(),
        )
        .await?;
        let opened = tokio::time::timeout(self.options.connect_timeout, async {
            let mut lanes: Vec<Box<dyn Lane>> = Vec::with_capacity(self.options.lanes);
            for _ in 0..self.options.lanes {
                lanes.push(Box::new(lane::AmqpLane::open(connection.clone(), &self.options).await?));
            }
            lapin::Result::Ok(lanes)
        });
        match opened.await {
            Ok(Ok(lanes)) => Ok(Connected {
                session: Box::new(connection),
                lanes,
            }),
            Ok(Err(error)) => {
                connection.kill();
                Err(BrokerError(format!("{}: channel: {error}", redacted_url(url.expose()))))
            }
            Err(_elapsed) => {
                connection.kill();
                Err(BrokerError(format!(
                    "{}: no channel within the time",
                    redacted_url(url.expose())
                )))
            }
        }
    }
}

#[async_trait]
impl Broker for Amqp {
    async fn connect(&self) -> Result<Connected, BrokerError> {
        let mut problems = Vec::new();
        let urls = broker_urls_now(&self.options.urls, &self.options.tls).map_err(BrokerError)?;
        for url in &urls {
            match self.connect_to(url).await {
                Ok(connected) => return Ok(connected),
                Err(error) => problems.push(error.0),
            }
        }
        Err(BrokerError(problems.join("; ")))
    }
}
