//! Questions to the plug-in over HTTP, one after the other on one connection.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{ACCEPT, AUTHORIZATION, HOST};
use axum::http::{HeaderValue, Request, StatusCode};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use url::Url;

use super::Access;
use crate::config::{Tls, management_url_now};
use crate::tls;

/// Bytes of one answer: an exchange with tens of thousands of bindings.
const ANSWER: usize = 16 << 20;

pub(super) struct Client {
    base: Url,
    host: HeaderValue,
    authorization: HeaderValue,
    timeout: Duration,
    sender: SendRequest<Body>,
    connection: JoinHandle<()>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// What was at a path.
pub(super) enum Answer {
    Found(Value),
    /// There is no such object.
    Missing,
    /// The user may not see it.
    Refused,
}

impl Answer {
    /// What every user with the tag may see; `None`: there is no such object.
    ///
    /// # Errors
    /// What to do where it may not be seen.
    pub(super) fn granted(self) -> Result<Option<Value>, String> {
        match self {
            Self::Found(value) => Ok(Some(value)),
            Self::Missing => Ok(None),
            Self::Refused => Err(
                "the login is refused: look at user and password in RELAY_AMQP_MANAGEMENT_URL (or its file); the user needs the \
                 tag `monitoring` (rabbitmqctl set_user_tags USER monitoring)"
                    .to_owned(),
            ),
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Client {
    /// # Errors
    /// The text says what to do, and holds nothing of the URL.
    pub(super) async fn connect(access: &Access<'_>) -> Result<Self, String> {
        within(access.timeout, Self::open(access)).await
    }

    async fn open(access: &Access<'_>) -> Result<Self, String> {
        let url = management_url_now(access.url, access.tls)?;
        let bad = || "the URL is not understood".to_owned();
        let base = Url::parse(url.expose()).map_err(|_| bad())?;
        let host = base.host_str().ok_or_else(bad)?.trim_matches(['[', ']']).to_owned();
        let port = base.port_or_known_default().ok_or_else(bad)?;
        let stream = TcpStream::connect((host.as_str(), port))
            .await
            .map_err(|error| error.to_string())?;
        let stream: Box<dyn Stream> = match base.scheme() {
            "https" => secure(stream, &host, access.tls).await?,
            _ => Box::new(stream),
        };
        let (sender, connection) = handshake(TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
        // Its end shows in the next request.
        let connection = tokio::spawn(async move { drop(connection.await) });
        let written = match base.port() {
            Some(port) => format!("{}:{port}", base.host_str().unwrap_or_default()),
            None => base.host_str().unwrap_or_default().to_owned(),
        };
        Ok(Self {
            host: HeaderValue::from_str(&written).map_err(|_| bad())?,
            authorization: basic(&base).ok_or_else(bad)?,
            base,
            timeout: access.timeout,
            sender,
            connection,
        })
    }

    /// What is at this path, whose segments may hold anything.
    ///
    /// # Errors
    /// The text says what to do, and quotes nothing of the answer.
    pub(super) async fn get(&mut self, path: &[&str]) -> Result<Answer, String> {
        within(self.timeout, self.ask(path)).await
    }

    async fn ask(&mut self, path: &[&str]) -> Result<Answer, String> {
        let request = Request::get(self.target(path))
            .header(HOST, &self.host)
            .header(AUTHORIZATION, &self.authorization)
            .header(ACCEPT, "application/json")
            .body(Body::empty())
            .map_err(|error| error.to_string())?;
        let failed =
            |error: hyper::Error| format!("no HTTP answer ({error}): is this the port of the management plug-in?");
        self.sender.ready().await.map_err(failed)?;
        let answer = self.sender.send_request(request).await.map_err(failed)?;
        let status = answer.status();
        // Always to the end, so that the connection can be used again.
        let body = axum::body::to_bytes(Body::new(answer.into_body()), ANSWER)
            .await
            .map_err(|_| format!("an answer that ends early, or of more than {} MiB", ANSWER >> 20))?;
        match status {
            StatusCode::OK => serde_json::from_slice(&body)
                .map(Answer::Found)
                .map_err(|_| "what answers there is not RabbitMQ's management plug-in".to_owned()),
            StatusCode::NOT_FOUND => Ok(Answer::Missing),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Ok(Answer::Refused),
            other => Err(format!(
                "the answer is {other}: is this the URL of the management plug-in, and is it enabled \
                 (rabbitmq-plugins enable rabbitmq_management)?"
            )),
        }
    }

    /// Behind the path of the URL.
    fn target(&self, path: &[&str]) -> String {
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        url.path().to_owned()
    }
}

async fn within<T>(bound: Duration, work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    tokio::time::timeout(bound, work)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {bound:?}")))
}

/// The plug-in has the broker's certificate, as a rule.
async fn secure(stream: TcpStream, host: &str, tls: &Tls) -> Result<Box<dyn Stream>, String> {
    let name = tls.server_name.as_deref().unwrap_or(host).to_owned();
    let name = ServerName::try_from(name).map_err(|_| "the host cannot be in a certificate".to_owned())?;
    let tls = tls.clone();
    // The system's authorities are some hundred files.
    let client = tokio::task::spawn_blocking(move || tls::client(&tls)).await;
    let client = client.map_err(|error| error.to_string())??;
    let stream = TlsConnector::from(Arc::new(client)).connect(name, stream).await;
    let stream = stream.map_err(|error| tls::explain(&error, &tls::BROKER).unwrap_or_else(|| error.to_string()))?;
    Ok(Box::new(stream))
}

/// User and password of the URL.
fn basic(url: &Url) -> Option<HeaderValue> {
    let decoded = |text: &str| percent_decode_str(text).collect::<Vec<u8>>();
    let login = [decoded(url.username()), decoded(url.password().unwrap_or_default())].join(&b':');
    let mut value = HeaderValue::from_str(&format!("Basic {}", STANDARD.encode(login))).ok()?;
    value.set_sensitive(true);
    Some(value)
}
