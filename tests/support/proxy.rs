//! A TCP proxy that does to connections what networks do.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

/// Ends with its connections when it is dropped.
pub struct Proxy {
    address: SocketAddr,
    control: Arc<Control>,
    task: JoinHandle<()>,
}

struct Control {
    target: Mutex<SocketAddr>,
    refuse: AtomicBool,
    delay: Mutex<Duration>,
    stalled: watch::Sender<bool>,
    answers_held: watch::Sender<bool>,
    // The value is whether the connections end by a reset.
    cut: watch::Sender<bool>,
    connections: AtomicUsize,
}

impl Proxy {
    pub async fn start(target: SocketAddr) -> Self {
        let port = super::free_port();
        let listener = TcpListener::bind(("127.0.0.1", port)).await.expect("a free port");
        let control = Arc::new(Control {
            target: Mutex::new(target),
            refuse: AtomicBool::new(false),
            delay: Mutex::new(Duration::ZERO),
            stalled: watch::Sender::new(false),
            answers_held: watch::Sender::new(false),
            cut: watch::Sender::new(false),
            connections: AtomicUsize::new(0),
        });
        Self {
            address: SocketAddr::from(([127, 0, 0, 1], port)),
            control: control.clone(),
            task: tokio::spawn(accept(listener, control)),
        }
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of a server (`amqp://` or `postgres://`), led through this proxy.
    pub fn through(&self, url: &str) -> String {
        let target = *self.control.target.lock().expect("no panic while locked");
        let through = url.replace(&target.to_string(), &self.address.to_string());
        assert_ne!(through, url, "the URL names the target {target}");
        through
    }

    /// Closes all connections now, orderly (FIN).
    pub fn cut(&self) {
        self.control.cut.send_replace(false);
    }

    /// Closes all connections now with a reset (RST).
    pub fn reset(&self) {
        self.control.cut.send_replace(true);
    }

    /// Holds all bytes of both directions; connections stay open, new ones are accepted.
    pub fn stall(&self) {
        self.control.stalled.send_replace(true);
    }

    pub fn resume(&self) {
        self.control.stalled.send_replace(false);
    }

    /// Whether the server's bytes are held; what clients send arrives.
    pub fn hold_answers(&self, on: bool) {
        self.control.answers_held.send_replace(on);
    }

    /// Whether new connections are closed at once; open ones stay.
    pub fn refuse(&self, on: bool) {
        self.control.refuse.store(on, Ordering::Relaxed);
    }

    /// The time that bytes need for each direction. Like a long line: the rate is not affected.
    pub fn delay(&self, delay: Duration) {
        *self.control.delay.lock().expect("no panic while locked") = delay;
    }

    /// How many connections are open now.
    pub fn connections(&self) -> usize {
        self.control.connections.load(Ordering::Relaxed)
    }

    /// Leads new connections to another server.
    pub fn retarget(&self, target: SocketAddr) {
        *self.control.target.lock().expect("no panic while locked") = target;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, control: Arc<Control>) {
    // Owns the tasks of the connections: they end with this one.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((client, _)) = accepted else { continue };
                if !control.refuse.load(Ordering::Relaxed) {
                    // Subscribed here, so that a cut from now on includes it.
                    let cut = control.cut.subscribe();
                    connections.spawn(serve(client, control.clone(), cut));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Counts a connection for as long as it is held.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn serve(mut client: TcpStream, control: Arc<Control>, mut cut: watch::Receiver<bool>) {
    let target = *control.target.lock().expect("no panic while locked");
    let Ok(mut server) = TcpStream::connect(target).await else {
        return;
    };
    let _counted = Counted::new(&control.connections);
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let reset = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let (stalled, held) = (control.stalled.subscribe(), control.answers_held.subscribe());
        let both = async {
            tokio::try_join!(
                pump(from_client, to_server, &control, vec![stalled.clone()]),
                pump(from_server, to_client, &control, vec![stalled, held])
            )
        };
        tokio::select! {
            _ = both => false,
            _ = cut.changed() => *cut.borrow(),
        }
    };
    if reset {
        let _ = (client.set_zero_linger(), server.set_zero_linger());
    }
}

/// Carries the bytes of one direction, and its end, while nothing holds them.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    control: &Control,
    mut held: Vec<watch::Receiver<bool>>,
) -> io::Result<()> {
    // What is on its way, each with the time of its arrival; no bytes: the end.
    let (line, mut arriving) = mpsc::channel::<(Instant, Vec<u8>)>(64);
    let read = async move {
        loop {
            let mut buffer = vec![0; 16 * 1024];
            let count = from.read(&mut buffer).await?;
            buffer.truncate(count);
            let delay = *control.delay.lock().expect("no panic while locked");
            let sent = line.send((Instant::now() + delay, buffer)).await;
            if count == 0 || sent.is_err() {
                return Ok::<_, io::Error>(());
            }
        }
    };
    let write = async {
        while let Some((arrival, bytes)) = arriving.recv().await {
            tokio::time::sleep_until(arrival).await;
            for held in &mut held {
                let _ = held.wait_for(|held| !held).await;
            }
            if bytes.is_empty() {
                return to.shutdown().await;
            }
            to.write_all(&bytes).await?;
        }
        Ok(())
    };
    tokio::try_join!(read, write).map(|_| ())
}
