//! Serves the endpoints, with a bound on everything that a client can make last or grow.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tracing::warn;

use crate::config::Identity;
use crate::tls;

/// Connections at a time; the next ones wait in the queue of the listener. While there is no place, each connection ends with
/// its next answer: a few clients that ask and ask must not keep a probe out.
const CONNECTIONS: usize = 128;

/// Bound of the TLS handshake, and of the time until a request's head is there.
const HEAD_TIME: Duration = Duration::from_secs(5);

/// Bytes of a request's head; more is answered with 431.
const HEAD_BYTES: usize = 16 * 1024;

/// Bytes of a request's body, as far as an endpoint reads one.
const BODY_BYTES: usize = 16 * 1024;

/// Bound of one answer: a report asks the database several times, each within `RELAY_DATABASE_TIMEOUT`.
const ANSWER_TIME: Duration = Duration::from_secs(180);

/// A connection is closed after this time, between two requests.
const CONNECTION_TIME: Duration = Duration::from_secs(300);

/// How long a listener rests that takes no connection: mostly there are no file descriptors left.
const REST: Duration = Duration::from_millis(100);

/// Serves until the task is dropped, over TLS where there is an identity.
pub(super) async fn serve(listener: TcpListener, router: Router, identity: Option<Identity>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let router = router
        .layer(DefaultBodyLimit::max(BODY_BYTES))
        .layer(middleware::from_fn(in_time))
        .layer(middleware::from_fn_with_state(places.clone(), making_room));
    let certificate = identity.map(|identity| Arc::new(Certificate::new(identity)));
    // Never closed.
    while let Ok(place) = places.clone().acquire_owned().await {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(_) => {
                tokio::time::sleep(REST).await;
                continue;
            }
        };
        let (router, certificate) = (router.clone(), certificate.clone());
        tokio::spawn(async move {
            let _place = place;
            // What goes wrong with one connection is the client's concern.
            let _ = connection(stream, peer, router, certificate.as_deref()).await;
        });
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    certificate: Option<&Certificate>,
) -> io::Result<()> {
    match certificate {
        None => requests(stream, peer, router).await,
        Some(certificate) => {
            let handshake = TlsAcceptor::from(certificate.now()?).accept(stream);
            requests(tokio::time::timeout(HEAD_TIME, handshake).await??, peer, router).await
        }
    }
}

async fn requests(stream: impl AsyncRead + AsyncWrite + Unpin, peer: SocketAddr, router: Router) -> io::Result<()> {
    let service = TowerToHyperService::new(router.layer(axum::Extension(ConnectInfo(peer))));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = tokio::time::sleep(CONNECTION_TIME) => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(ANSWER_TIME, connection).await?
        }
    };
    ended.map_err(io::Error::other)
}

async fn in_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(ANSWER_TIME, next.run(request)).await {
        Ok(answer) => answer,
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "no answer in time\n").into_response(),
    }
}

async fn making_room(State(places): State<Arc<Semaphore>>, request: Request, next: Next) -> Response {
    let mut answer = next.run(request).await;
    if places.available_permits() == 0 {
        let headers = answer.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    answer
}

/// The certificate in its files, as it is now.
struct Certificate {
    identity: Identity,
    last: Mutex<Last>,
}

#[derive(Default)]
struct Last {
    /// The files' content.
    files: (Vec<u8>, Vec<u8>),
    /// What was made of it, or of the last content that could be used.
    config: Option<Arc<ServerConfig>>,
}

impl Certificate {
    fn new(identity: Identity) -> Self {
        Self {
            identity,
            last: Mutex::default(),
        }
    }

    /// Between the replacement of one file and the other, the last pair that fitted is used.
    fn now(&self) -> io::Result<Arc<ServerConfig>> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let read = |file| tls::read(file).unwrap_or_default();
        let files = (read(&self.identity.cert_file), read(&self.identity.key_file));
        if last.files != files {
            last.files = files;
            match tls::server(&self.identity) {
                Ok(config) => last.config = Some(Arc::new(config)),
                Err(problem) => warn!(problem, "RELAY_ADMIN_TLS_CERT_FILE: the last good certificate is used"),
            }
        }
        last.config
            .clone()
            .ok_or_else(|| io::Error::other("no certificate that could be used"))
    }
}
