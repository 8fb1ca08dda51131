//! One AMQP connection, from the socket to the last frame.

use std::collections::HashMap;
use std::net::Shutdown;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_compat::CompatExt;
use async_trait::async_trait;
use futures_util::{FutureExt, Stream, StreamExt};
use lapin::options::{ConfirmSelectOptions, ExchangeDeclareOptions};
use lapin::protocol::{AMQPError, AMQPErrorKind};
use lapin::tcp::{AsyncTcpStream, RustlsConnector};
use lapin::types::FieldTable;
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Channel, ConnectionProperties, ErrorKind, Event, ExchangeKind};
use tokio::net::TcpStream;

use crate::broker::{BrokerError, Session};
use crate::config::{Secret, Tls, redacted_url};
use crate::tls;

use super::executor::Writing;
use super::properties::short;
use super::trust::{HOLDS, MOST_NAMES, Refusals, Trust};

/// Seconds. A frozen broker is noticed after two of these.
const HEARTBEAT: u16 = 10;

/// Bytes. Always asked for: a server that answers "no limit" makes lapin reserve that much memory.
const FRAME_MAX: u32 = 131_072;

/// The broker's code for a login that it refuses, and for want of a permission.
pub(super) const ACCESS_REFUSED: u16 = 403;

/// The broker's code for a virtual host that the user may not open, or that is not there.
const NOT_ALLOWED: u16 = 530;

/// How long close-ok is waited for. lapin cannot send a close while the broker is blocked, so there must be a bound.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

type Events = std::pin::Pin<Box<dyn Stream<Item = Event> + Send>>;

/// A connection that is shared by its lanes. When the last clone is dropped the socket is shut.
#[derive(Clone)]
pub(super) struct Connection(Arc<Inner>);

struct Inner {
    lapin: lapin::Connection,
    socket: Socket,
    writing: Writing,
    address: String,
    events: Mutex<Events>,
    /// What was seen of exchanges when they were last looked at.
    exchanges: Mutex<HashMap<String, Seen>>,
    trust: Trust,
}

enum Seen {
    Present,
    /// A look at one that is not there costs a channel for good.
    Missing {
        text: String,
        until: Instant,
    },
}

/// A second handle of the connection's socket. lapin's thread owns the first and ends only when the socket does,
/// so a connection that is given up (at any stage of its handshake) must have its socket shut by us.
struct Socket(std::net::TcpStream);

impl Socket {
    fn shut(&self) {
        // Fails only when the peer was faster.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.shut();
    }
}

/// What a look at an exchange says.
pub(super) enum ExchangeCheck {
    Present,
    Missing(String),
}

impl Connection {
    /// Connects and logs in.
    ///
    /// # Errors
    /// When that is refused or takes longer than `timeout`; the text holds no credentials.
    pub(super) async fn open(
        url: &Secret,
        tls: &Tls,
        timeout: Duration,
        refusals: Refusals,
    ) -> Result<Self, BrokerError> {
        let address = redacted_url(url.expose());
        let fail = |what: &str| BrokerError(format!("{address}: {what}"));
        // The parser's own error would quote the URL, password included.
        let mut uri: AMQPUri = url.expose().parse().map_err(|_| fail("not a valid AMQP URL"))?;
        uri.query.heartbeat.get_or_insert(HEARTBEAT);
        uri.query.frame_max = Some(FRAME_MAX);
        let certificate = tls.identity.is_some();
        match tokio::time::timeout(timeout, Self::handshake(uri, tls, address.clone(), refusals)).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(fail(&error.explain(certificate))),
            Err(_elapsed) => Err(fail(&format!("no answer within {timeout:?}"))),
        }
    }

    async fn handshake(uri: AMQPUri, tls: &Tls, address: String, refusals: Refusals) -> Result<Self, Failure> {
        let stream = TcpStream::connect((uri.authority.host.as_str(), uri.authority.port)).await?;
        stream.set_nodelay(true)?;
        let stream = stream.into_std()?;
        let socket = Socket(stream.try_clone()?);
        let stream = AsyncTcpStream::Plain(TcpStream::from_std(stream)?.compat());
        let secured = uri.scheme == AMQPScheme::AMQPS;
        let stream = match secured {
            false => stream,
            true => {
                let host = &uri.authority.host;
                let name = tls.server_name.as_ref().unwrap_or(host);
                let client = client(tls.clone()).await?;
                stream.into_rustls(&RustlsConnector::from(client), name).await?
            }
        };
        // lapin asks for the stream once, as it never reconnects by itself.
        let stream = Mutex::new(Some(stream));
        let writing = Writing::default();
        let lapin = lapin::Connection::connector(
            uri,
            writing.runtime(),
            async move |_uri, _runtime| {
                lock(&stream)
                    .take()
                    .ok_or_else(|| std::io::Error::other("the connection was used up").into())
            },
            ConnectionProperties::default().with_connection_name("outbox-relay".into()),
        )
        .await
        .map_err(|error| Failure::Login { error, secured })?;
        let events: Events = Box::pin(lapin.events_listener());
        Ok(Self(Arc::new(Inner {
            lapin,
            socket,
            writing,
            address,
            events: Mutex::new(events),
            exchanges: Mutex::default(),
            trust: Trust::new(refusals),
        })))
    }

    /// A new channel in confirm mode.
    pub(super) async fn channel(&self) -> lapin::Result<Channel> {
        let channel = self.0.lapin.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(channel)
    }

    /// Ends the connection at once.
    pub(super) fn kill(&self) {
        self.0.socket.shut();
    }

    pub(super) fn connected(&self) -> bool {
        self.0.lapin.status().connected()
    }

    /// Asks the broker whether an exchange exists, once per connection and name: publishing to a missing one
    /// would close the channel and lose every confirm that is still on its way.
    pub(super) async fn look_at_exchange(&self, name: &str) -> lapin::Result<ExchangeCheck> {
        if name.is_empty() {
            return Ok(ExchangeCheck::Present);
        }
        match lock(&self.0.exchanges).get_mut(name) {
            Some(Seen::Present) => return Ok(ExchangeCheck::Present),
            Some(Seen::Missing { text, until }) if Instant::now() < *until => {
                return Ok(ExchangeCheck::Missing(text.clone()));
            }
            // One lane looks again, and the others need not.
            Some(Seen::Missing { until, .. }) => *until = Instant::now() + HOLDS,
            None => {}
        }
        let channel = self.0.lapin.create_channel().await?;
        let passive = ExchangeDeclareOptions {
            passive: true,
            ..ExchangeDeclareOptions::default()
        };
        let asked = channel
            .exchange_declare(short(name), ExchangeKind::Direct, passive, FieldTable::default())
            .await;
        match asked {
            Ok(()) => {
                lock(&self.0.exchanges).insert(name.to_owned(), Seen::Present);
                channel.close(200, "OK".into()).await?;
                Ok(ExchangeCheck::Present)
            }
            Err(error) => match soft_error(&error) {
                Some((404, text)) => {
                    self.missing(name, &text);
                    Ok(ExchangeCheck::Missing(text))
                }
                // Not allowed to look: the publish itself will tell.
                Some(_) => Ok(ExchangeCheck::Present),
                None => Err(error),
            },
        }
    }

    /// The exchange is not there. That is believed for some seconds.
    pub(super) fn missing(&self, name: &str, text: &str) {
        let mut exchanges = lock(&self.0.exchanges);
        if exchanges.len() >= MOST_NAMES {
            exchanges.retain(|_, seen| matches!(seen, Seen::Present));
        }
        let missing = Seen::Missing {
            text: text.to_owned(),
            until: Instant::now() + HOLDS,
        };
        exchanges.insert(name.to_owned(), missing);
    }

    /// Messages that are being written to the socket.
    pub(super) fn writing(&self) -> &Writing {
        &self.0.writing
    }

    /// Which messages may share a channel.
    pub(super) fn trust(&self) -> &Trust {
        &self.0.trust
    }
}

#[async_trait]
impl Session for Connection {
    // Polled rather than listened for: `ConnectionBlocked` may come before a listener is attached.
    fn blocked(&self) -> bool {
        self.0.lapin.status().blocked()
    }

    fn failure(&self) -> Option<String> {
        if self.connected() {
            return None;
        }
        let mut reason = None;
        let mut events = lock(&self.0.events);
        while let Some(Some(event)) = events.next().now_or_never() {
            if let Event::Error(error) = event {
                reason = Some(error.to_string());
            }
        }
        Some(reason.unwrap_or_else(|| "the connection was closed".to_owned()))
    }

    fn address(&self) -> &str {
        &self.0.address
    }

    async fn check_exchange(&self, name: &str) -> Result<(), String> {
        match tokio::time::timeout(CLOSE_TIMEOUT, self.look_at_exchange(name)).await {
            Ok(Ok(ExchangeCheck::Present)) => Ok(()),
            Ok(Ok(ExchangeCheck::Missing(text))) => Err(format!("{text}: declare it, the relay never does")),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_elapsed) => Err("no answer".to_owned()),
        }
    }

    /// A confirmed close is a barrier: the broker has then dealt with all that was sent on this connection.
    async fn close(&self) {
        if self.connected() && !self.blocked() {
            let close = self.0.lapin.close(200, "OK".into());
            // An error or no answer in time end the same way: the socket is shut.
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, close).await;
        }
        self.kill();
    }
}

/// Why there is no connection.
enum Failure {
    /// Files that cannot be used.
    Files(String),
    Stream(std::io::Error),
    Login {
        error: lapin::Error,
        secured: bool,
    },
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Stream(error)
    }
}

impl Failure {
    /// For a person, with what to do. `certificate`: the relay has one to show.
    fn explain(&self, certificate: bool) -> String {
        match self {
            Self::Files(text) => text.clone(),
            Self::Stream(error) => tls::explain(error, &tls::BROKER).unwrap_or_else(|| error.to_string()),
            Self::Login { error, secured } => {
                if let Some(text) = tls::explain(error, &tls::BROKER) {
                    return text;
                }
                match error.kind() {
                    ErrorKind::ProtocolError(error) if error.get_id() == ACCESS_REFUSED && by_certificate(error) => {
                        format!(
                            "{}: the user is the name in the relay's certificate ({}), and must be there with permissions",
                            error.get_message(),
                            tls::BROKER.certificate
                        )
                    }
                    ErrorKind::ProtocolError(error) if error.get_id() == ACCESS_REFUSED => format!(
                        "{}: look at user and password in RELAY_AMQP_URL (or its file), and at the user's permissions",
                        error.get_message()
                    ),
                    ErrorKind::ProtocolError(error) if error.get_id() == NOT_ALLOWED => format!(
                        "{}: create the virtual host, or give the user permissions in the virtual host \
                         (`migrate --print-grants` prints the command)",
                        error.get_message()
                    ),
                    ErrorKind::IOError(_) if *secured => {
                        format!("{error}: {}", tls::after_handshake(certificate, &tls::BROKER))
                    }
                    ErrorKind::IOError(_) => {
                        format!("{error}: if this is the broker's port for TLS, write `amqps://` in RELAY_AMQP_URL")
                    }
                    _ => error.to_string(),
                }
            }
        }
    }
}

/// Whether a login was by certificate (SASL EXTERNAL): the broker names the mechanism.
fn by_certificate(error: &AMQPError) -> bool {
    error.get_message().as_str().contains("EXTERNAL")
}

/// The system's authorities are some hundred files.
async fn client(tls: Tls) -> Result<rustls::ClientConfig, Failure> {
    let made = tokio::task::spawn_blocking(move || tls::client(&tls)).await;
    made.map_err(|error| Failure::Files(error.to_string()))?
        .map_err(Failure::Files)
}

/// The code and text of an error that closed only the channel.
pub(super) fn soft_error(error: &lapin::Error) -> Option<(u16, String)> {
    match error.kind() {
        ErrorKind::ProtocolError(error) if matches!(error.kind(), AMQPErrorKind::Soft(_)) => {
            Some((error.get_id(), error.get_message().to_string()))
        }
        _ => None,
    }
}

/// Nothing that can panic runs under these locks, so a poisoned one is still sound.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
