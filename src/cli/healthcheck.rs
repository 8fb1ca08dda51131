//! `outbox-relay healthcheck`: one request to the running relay.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::config::Config;

/// Bound of the whole request.
const TIMEOUT: Duration = Duration::from_secs(3);

pub(super) async fn healthcheck(config: &Config, ready: bool) -> anyhow::Result<ExitCode> {
    let path = if ready { "/readyz" } else { "/livez" };
    let (code, body) = ask(config.admin_listen, path, TIMEOUT).await?;
    println!("{body}");
    let healthy = code == 200;
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Asks the relay that listens here: status code and body.
///
/// # Errors
/// When nothing answers within `timeout`, or what answers is no HTTP server.
pub(super) async fn ask(listen: SocketAddr, path: &str, timeout: Duration) -> anyhow::Result<(u16, String)> {
    let address = reachable(listen);
    let answer = tokio::time::timeout(timeout, get(address, path))
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
async fn get(address: SocketAddr, path: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(address)
        .await
        .with_context(|| format!("no relay answers on {address} (RELAY_ADMIN_LISTEN)"))?;
    stream
        .write_all(format!("GET {path} HTTP/1.0\r\nHost: relay\r\n\r\n").as_bytes())
        .await?;
    let mut answer = String::new();
    stream.take(64 * 1024).read_to_string(&mut answer).await?;
    if !answer.starts_with("HTTP/") {
        bail!("{address} does not speak HTTP: is RELAY_ADMIN_LISTEN the relay's?");
    }
    Ok(answer)
}
