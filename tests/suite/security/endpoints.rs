//! The endpoints: TLS, and bounds on what a client can make last or grow.

use std::net::SocketAddr;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::outbox::SECOND;
use crate::support::{Authority, Relay, RelayCommand, free_port};

/// Neither database nor broker is there: the endpoints need none.
fn relay() -> RelayCommand {
    Relay::command()
        .env("RELAY_DATABASE_URL", "postgres://nobody@127.0.0.1:1/none")
        .env("RELAY_AMQP_URL", "amqp://127.0.0.1:1")
}

/// Sends some bytes, and reads what comes until the server ends the connection.
async fn send(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // It may have been closed in the middle of it.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(60 * SECOND, stream.read_to_end(&mut answer))
        .await
        .expect("the server ends the connection");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn slow_and_large_requests_are_ended() {
    let relay = relay().spawn();
    let address = relay.admin().await;
    let endless_head = format!("GET /livez HTTP/1.1\r\nHost: r\r\nX-Long: {}\r\n", "x".repeat(200_000));
    let (silent, half, long, body) = tokio::join!(
        send(address, b""),
        send(address, b"GET /livez HTTP/1.1\r\nHost: r\r\n"),
        send(address, endless_head.as_bytes()),
        send(
            address,
            b"POST /livez HTTP/1.1\r\nHost: r\r\nContent-Length: 10000000000\r\n\r\nx"
        ),
    );
    assert_eq!(silent, "");
    assert!(half.is_empty() || half.starts_with("HTTP/1.1 408"), "{half}");
    assert!(long.is_empty() || long.starts_with("HTTP/1.1 431"), "{long}");
    assert!(body.starts_with("HTTP/1.1 405"), "{body}");
    assert_eq!(relay.get("/livez").await.0, 200);
}

#[tokio::test]
async fn many_silent_connections_do_not_keep_others_out_for_long() {
    let relay = relay().spawn();
    let address = relay.admin().await;
    let mut held = Vec::new();
    for _ in 0..200 {
        held.push(TcpStream::connect(address).await.unwrap());
    }
    let answer = tokio::time::timeout(
        60 * SECOND,
        send(address, b"GET /livez HTTP/1.1\r\nHost: r\r\nConnection: close\r\n\r\n"),
    )
    .await;
    assert!(answer.expect("an answer").starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn connections_that_ask_and_ask_do_not_keep_others_out() {
    let relay = relay().spawn();
    let address = relay.admin().await;
    let mut tasks = tokio::task::JoinSet::new();
    let (begun, mut all_begun) = tokio::sync::mpsc::channel(200);
    for _ in 0..128 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let begun = begun.clone();
        tasks.spawn(async move {
            let mut answer = [0; 1024];
            // Until the server ends it, which is what is asked for here.
            while stream
                .write_all(b"GET /livez HTTP/1.1\r\nHost: r\r\n\r\n")
                .await
                .is_ok()
            {
                match stream.read(&mut answer).await {
                    Ok(1..) => _ = begun.try_send(()),
                    _ => break,
                }
            }
        });
    }
    for _ in 0..128 {
        all_begun.recv().await.expect("answers");
    }
    let answer = tokio::time::timeout(
        30 * SECOND,
        send(address, b"GET /livez HTTP/1.1\r\nHost: r\r\nConnection: close\r\n\r\n"),
    )
    .await;
    assert!(answer.expect("an answer").starts_with("HTTP/1.1 200"));
}

/// A TLS client that trusts this authority.
async fn get_over_tls(address: SocketAddr, authority: &Authority, name: &str) -> std::io::Result<String> {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    stream
        .write_all(b"GET /livez HTTP/1.1\r\nHost: r\r\nConnection: close\r\n\r\n")
        .await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[tokio::test]
async fn endpoints_over_tls_follow_their_files_and_the_healthcheck_finds_them() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (Authority::new("first"), Authority::new("second"));
    let (certificate, key) = first.server(&["relay.example"]).write(folder.path(), "admin");
    let listen = format!("127.0.0.1:{}", free_port());
    let env = [
        ("RELAY_DATABASE_URL", "postgres://nobody@127.0.0.1:1/none"),
        ("RELAY_AMQP_URL", "amqp://127.0.0.1:1"),
        ("RELAY_ADMIN_LISTEN", listen.as_str()),
        ("RELAY_ADMIN_TLS_CERT_FILE", certificate.to_str().unwrap()),
        ("RELAY_ADMIN_TLS_KEY_FILE", key.to_str().unwrap()),
    ];
    let command = env
        .iter()
        .fold(Relay::command(), |command, (name, value)| command.env(name, value));
    let relay = command.spawn();
    let address = relay.admin().await;

    let answer = get_over_tls(address, &first, "relay.example").await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let plain = send(address, b"GET /livez HTTP/1.1\r\nHost: r\r\n\r\n").await;
    assert!(!plain.contains("HTTP"), "an answer without TLS: {plain}");
    let (status, out, err) = Relay::run_to_end(&["healthcheck"], &env).await;
    assert_eq!((status.code(), out.trim()), (Some(0), r#"{"alive":true}"#), "{err}");

    // The new certificate without its key: the old pair goes on.
    let new = second.server(&["relay.example"]);
    std::fs::write(&certificate, &new.certificate).unwrap();
    assert!(get_over_tls(address, &first, "relay.example").await.is_ok());
    std::fs::write(&key, &new.key).unwrap();
    let answer = get_over_tls(address, &second, "relay.example").await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(get_over_tls(address, &first, "relay.example").await.is_err());
    let (status, _, err) = Relay::run_to_end(&["healthcheck"], &env).await;
    assert_eq!(status.code(), Some(0), "{err}");

    // Another program at the relay's address is not taken for it.
    let (other, _) = first.server(&["relay.example"]).write(folder.path(), "other");
    let other_key = folder.path().join("other.key");
    let mut env = env;
    env[3].1 = other.to_str().unwrap();
    let (status, _, err) = Relay::run_to_end(&["healthcheck"], &env).await;
    assert!(
        status.code() == Some(64) && err.contains("RELAY_ADMIN_TLS_KEY_FILE"),
        "a certificate beside another's key: {err}"
    );
    env[4].1 = other_key.to_str().unwrap();
    let (status, _, err) = Relay::run_to_end(&["healthcheck"], &env).await;
    assert!(
        status.code() == Some(1) && err.contains("RELAY_ADMIN_TLS_CERT_FILE"),
        "{err}"
    );
}
