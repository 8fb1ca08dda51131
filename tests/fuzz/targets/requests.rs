//! Any bytes on the address of the endpoints get answers of HTTP, in time, and change nothing without the token.
#![no_main]

use std::sync::Arc;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use outbox_relay::admin::{self, Admin, StatusPage};
use outbox_relay::config;
use outbox_relay::health::Health;
use outbox_relay::metrics::Metrics;
use outbox_relay::status::Status;
use outbox_relay::store::{self, StoreOptions};
use outbox_relay::telemetry;
use outbox_relay_fuzz::required;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

/// Longer than a connection may last.
const BOUND: Duration = Duration::from_secs(600);

thread_local! {
    /// Time passes by itself whenever all wait for it: what has a bound ends at once.
    static RELAY: (Runtime, std::net::SocketAddr) = {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .expect("a runtime");
        let address = runtime.block_on(serve());
        (runtime, address)
    };
}

async fn serve() -> std::net::SocketAddr {
    let token = [("RELAY_ADMIN_TOKEN", "that-no-input-has-8e0d6f"), ("RELAY_LOG", "off")];
    let env = required().into_iter().chain(token);
    let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let config = config::load(env).expect("a configuration").config;
    let options = StoreOptions {
        table: config.outbox.table.clone(),
        on_sent: config.outbox.on_sent,
        timeout: config.database_timeout,
        tls: config.database_tls.clone(),
        mapping: config.outbox.mapping.clone(),
    };
    let levels = telemetry::init(&config);
    let store = store::open_operator(&config.database_url, options).expect("a store");
    let admin = Admin {
        levels,
        token: config.admin_token.clone(),
        health: Arc::new(Health::new()),
        metrics: Arc::new(Metrics::new()),
        status: Arc::new(StatusPage::new(Status::new(store, config))),
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(admin::serve(listener, admin, None));
    address
}

fuzz_target!(|data: &[u8]| {
    RELAY.with(|(runtime, address)| {
        let answer = runtime.block_on(async {
            let talk = talk(*address, data);
            tokio::time::timeout(BOUND, talk).await.expect("the connection ends")
        });
        let text = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || text.starts_with("HTTP/1."), "{text}");
    });
});

/// All that is answered until the relay closes the connection.
async fn talk(address: std::net::SocketAddr, data: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.expect("a listener");
    let mut answer = Vec::new();
    let (mut from, mut to) = stream.split();
    let read = async {
        // Reset where it closed with bytes unread.
        let _ = from.read_to_end(&mut answer).await;
    };
    let write = async {
        let _ = to.write_all(data).await;
    };
    tokio::join!(read, write);
    answer
}
