//! HTTP/1.1 to a collector, on one connection that is kept.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{HOST, HeaderValue};
use hyper_util::rt::TokioIo;
use opentelemetry_http::{HttpClient, HttpError, Request, Response};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::Mutex;
use tokio_rustls::TlsConnector;

use crate::config::{Tls, Traces};
use crate::tls;

/// Bytes of an answer; more is an error.
const ANSWER_BYTES: usize = 64 * 1024;

type Connection = SendRequest<Full<Bytes>>;

/// Called on a thread without a runtime, and works on the one it was made in.
pub(super) struct Client {
    runtime: Handle,
    timeout: Duration,
    tls: Tls,
    connection: Arc<Mutex<Option<Connection>>>,
}

impl Client {
    pub(super) fn new(traces: &Traces) -> Self {
        Self {
            runtime: Handle::current(),
            timeout: traces.timeout,
            tls: Tls {
                ca_file: traces.ca_file.clone(),
                ..Tls::default()
            },
            connection: Arc::default(),
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Client")
    }
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (tls, connection, timeout) = (self.tls.clone(), self.connection.clone(), self.timeout);
        // One request at a time; a connection that failed or was given up in the middle is not put back.
        let sending = async move {
            let mut kept = connection.lock().await;
            let (response, again) = send(kept.take(), &tls, request).await?;
            *kept = Some(again);
            Ok::<_, HttpError>(response)
        };
        self.runtime
            .spawn(async move { tokio::time::timeout(timeout, sending).await? })
            .await?
    }
}

async fn send(
    kept: Option<Connection>,
    tls: &Tls,
    request: Request<Bytes>,
) -> Result<(Response<Bytes>, Connection), HttpError> {
    let (mut head, body) = request.into_parts();
    let authority = head.uri.authority().ok_or("the endpoint names no host")?.clone();
    let encrypted = head.uri.scheme_str() == Some("https");
    let port = head.uri.port_u16().unwrap_or(if encrypted { 443 } else { 80 });
    // A server can have closed it since.
    let usable = match kept {
        Some(mut kept) => kept.ready().await.is_ok().then_some(kept),
        None => None,
    };
    let mut connection = match usable {
        Some(kept) => kept,
        None => connect(authority.host(), port, encrypted.then_some(tls)).await?,
    };
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str()).parse()?;
    head.uri = path;
    head.headers.insert(HOST, HeaderValue::from_str(authority.as_str())?);
    let request = Request::from_parts(head, Full::new(body));
    let (head, body) = connection.send_request(request).await?.into_parts();
    let body = Limited::new(body, ANSWER_BYTES).collect().await?.to_bytes();
    Ok((Response::from_parts(head, body), connection))
}

async fn connect(host: &str, port: u16, tls: Option<&Tls>) -> Result<Connection, HttpError> {
    let bare = host.trim_matches(['[', ']']);
    let stream = TcpStream::connect((bare, port)).await?;
    match tls {
        None => speak(stream).await,
        Some(tls) => {
            let connector = TlsConnector::from(Arc::new(tls::client(tls)?));
            let name = ServerName::try_from(bare.to_owned())?;
            speak(connector.connect(name, stream).await?).await
        }
    }
}

async fn speak(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) -> Result<Connection, HttpError> {
    let (connection, work) = handshake(TokioIo::new(stream)).await?;
    // Ends with the connection; what went wrong is told to the request.
    tokio::spawn(work);
    Ok(connection)
}
