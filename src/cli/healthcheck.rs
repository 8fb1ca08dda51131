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
    let address = reachable(config.admin_listen);
    let request = tokio::time::timeout(TIMEOUT, get(address, path));
    let answer = request
        .await
        .with_context(|| format!("no answer from {address} within {TIMEOUT:?}"))??;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    println!("{body}");
    let healthy = head.split(' ').nth(1) == Some("200");
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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
