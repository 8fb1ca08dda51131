//! `outbox-relay healthcheck`: one request to the running relay.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::config::{Config, Identity, token_now};
use crate::tls;

/// Bound of the whole request.
const TIMEOUT: Duration = Duration::from_secs(3);

pub(super) async fn healthcheck(config: &Config, ready: bool) -> anyhow::Result<ExitCode> {
    let path = if ready { "/readyz" } else { "/livez" };
    let (code, body) = ask(config, path, TIMEOUT).await?;
    println!("{body}");
    let healthy = code == 200;
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Asks the relay that listens here: status code and body.
///
/// # Errors
/// When nothing answers within `timeout`, or what answers is no HTTP server.
pub(super) async fn ask(config: &Config, path: &str, timeout: Duration) -> anyhow::Result<(u16, String)> {
    send(config, &format!("GET {path} HTTP/1.0\r\nHost: relay\r\n\r\n"), timeout).await
}

/// Has the relay that listens here change something: status code and body. The token is sent if there is one.
///
/// # Errors
/// As for [`ask`], or when the token's file cannot be used.
pub(super) async fn put(config: &Config, path: &str, body: &str, timeout: Duration) -> anyhow::Result<(u16, String)> {
    let token = match &config.admin_token {
        None => String::new(),
        Some(token) => {
            let token = token_now(token).map_err(anyhow::Error::msg)?;
            format!("Authorization: Bearer {}\r\n", token.expose())
        }
    };
    let length = body.len();
    let request = format!("PUT {path} HTTP/1.0\r\nHost: relay\r\n{token}Content-Length: {length}\r\n\r\n{body}");
    send(config, &request, timeout).await
}

async fn send(config: &Config, request: &str, timeout: Duration) -> anyhow::Result<(u16, String)> {
    let address = reachable(config.admin_listen);
    let identity = config.admin_identity.as_ref();
    let answer = tokio::time::timeout(timeout, talk(address, identity, request))
        .await
        .with_context(|| format!("no answer from {address} within {timeout:?}"))??;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok((code.unwrap_or(0), body.to_owned()))
}

/// A listener on "any address" is asked on the loopback.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listen.port())
}

/// HTTP/1.0: the answer ends with the connection, so no client library is needed for one request.
async fn talk(address: SocketAddr, identity: Option<&Identity>, request: &str) -> anyhow::Result<String> {
    let stream = TcpStream::connect(address)
        .await
        .with_context(|| format!("no relay answers on {address} (RELAY_ADMIN_LISTEN)"))?;
    let answer = match identity {
        None => exchange(stream, request).await?,
        Some(identity) => {
            let client = tls::client_of(identity).map_err(anyhow::Error::msg)?;
            let connector = TlsConnector::from(Arc::new(client));
            let stream = connector.connect(address.ip().into(), stream).await.with_context(|| {
                format!("{address} is not served with the certificate of RELAY_ADMIN_TLS_CERT_FILE")
            })?;
            exchange(stream, request).await?
        }
    };
    if !answer.starts_with("HTTP/") {
        bail!("{address} does not speak HTTP: is RELAY_ADMIN_LISTEN the relay's, and RELAY_ADMIN_TLS_CERT_FILE?");
    }
    Ok(answer)
}

async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> io::Result<String> {
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut answer = Vec::new();
    stream.take(64 * 1024).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
