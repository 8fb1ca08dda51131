//! A private RabbitMQ node, with a port mapper (epmd) of its own.

use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use lapin::{Connection, ConnectionProperties};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::OnceCell;

use super::guard::{Guard, free_port};
use super::{process, until};

mod control;

const START_TIMEOUT: Duration = Duration::from_secs(90);
const COOKIE: &str = "outbox-relay-tests";

/// A node in a temporary folder, with the user `guest` and, unless asked for, no plug-in.
pub struct Rabbit {
    guard: Guard,
    home: PathBuf,
    // The libraries of the installation without its optional plug-ins.
    libraries: PathBuf,
    installation: PathBuf,
    amqp_port: u16,
    epmd_port: u16,
    distribution_port: u16,
    management_port: u16,
    pid: AtomicU32,
}

/// The plug-in that answers over HTTP, and those that it needs.
const MANAGEMENT: [&str; 3] = [
    "rabbitmq_management",
    "rabbitmq_management_agent",
    "rabbitmq_web_dispatch",
];

impl Rabbit {
    /// The node that the tests of one process share, each with a virtual host of its own. Kill,
    /// freeze or alarm only a private one.
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<Rabbit> = OnceCell::const_new();
        SHARED.get_or_init(Self::start).await
    }

    pub async fn start() -> Self {
        Self::start_with(&[], |_| String::new()).await
    }

    /// With the management plug-in, over TLS with this certificate and key, or without.
    pub async fn start_with_management(tls: Option<(&Path, &Path)>) -> Self {
        Self::start_with(&MANAGEMENT, |port| match tls {
            None => format!("management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {port}\n"),
            Some((certificate, key)) => format!(
                "management.ssl.ip = 127.0.0.1\nmanagement.ssl.port = {port}\n\
                 management.ssl.certfile = {}\nmanagement.ssl.keyfile = {}\n",
                certificate.display(),
                key.display()
            ),
        })
        .await
    }

    /// `configuration` gets the port that is kept for the management plug-in.
    async fn start_with(plugins: &[&str], configuration: impl Fn(u16) -> String) -> Self {
        let mut failures = String::new();
        for _ in 0..3 {
            let node = Self::prepare(plugins).await;
            std::fs::write(node.home.join("node.conf"), configuration(node.management_port))
                .expect("the folder is writable");
            match node.launch().await {
                Ok(()) => return node,
                Err(failure) => failures = failure,
            }
        }
        panic!("{failures}");
    }

    pub fn port(&self) -> u16 {
        self.amqp_port
    }

    /// The URL of the default virtual host.
    pub fn url(&self) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/%2f", self.amqp_port)
    }

    /// Where the management plug-in listens, once it does.
    pub async fn management(&self) -> SocketAddr {
        let address = SocketAddr::from(([127, 0, 0, 1], self.management_port));
        until("the management plug-in listens", Duration::from_secs(60), async || {
            TcpStream::connect(address).is_ok()
        })
        .await;
        address
    }

    /// Crashes the node: no process of it runs a clean-up.
    pub async fn kill9(&self) {
        process::kill_tree(self.pid()).await;
    }

    /// Starts it again after `kill9`, with the same ports and data.
    ///
    /// RabbitMQ 3.10 may lose a quorum queue that was declared in the last seconds before.
    pub async fn start_again(&self) {
        assert!(!process::alive(self.pid()), "RabbitMQ still runs");
        if let Err(failure) = self.launch().await {
            panic!("{failure}");
        }
    }

    /// Stops the node in its tracks: connections stay open, nothing answers.
    pub fn freeze(&self) {
        process::signal("STOP", &process::tree(self.pid()));
    }

    pub fn thaw(&self) {
        process::signal("CONT", &process::tree(self.pid()));
    }

    pub fn pid(&self) -> u32 {
        self.pid.load(Ordering::Relaxed)
    }

    fn name(&self) -> String {
        format!("test-{}@localhost", self.amqp_port)
    }

    /// Makes the node's home and starts its port mapper.
    async fn prepare(plugins: &[&str]) -> Self {
        let installation = find_installation();
        let guard = Guard::new("rabbitmq", None);
        let home = guard.dir().to_path_buf();
        let libraries = home.join("libraries");
        link_libraries(&installation, &libraries, plugins);
        let enabled = plugins.first().copied().unwrap_or_default();
        std::fs::write(home.join("enabled_plugins"), format!("[{enabled}].\n")).expect("the folder is writable");
        let cookie = home.join(".erlang.cookie");
        std::fs::write(&cookie, COOKIE).expect("the folder is writable");
        // Erlang refuses a cookie that others can read.
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o400);
        std::fs::set_permissions(&cookie, private).expect("own file");

        let epmd_port = free_port();
        let port = epmd_port.to_string();
        guard.start(&[], &PathBuf::from("epmd"), &["-port", &port, "-address", "127.0.0.1"]);
        until("epmd listens", Duration::from_secs(20), async || {
            TcpStream::connect(("127.0.0.1", epmd_port)).is_ok()
        })
        .await;
        Self {
            guard,
            home,
            libraries,
            installation,
            amqp_port: free_port(),
            epmd_port,
            distribution_port: free_port(),
            management_port: free_port(),
            pid: AtomicU32::new(0),
        }
    }

    /// Starts the node and waits until a client can log in; fails when it ends before.
    ///
    /// Runs `erl` as the script `rabbitmq-server` does. Without the script in between, the code
    /// path can leave out the optional plug-ins: Erlang looks for each of a thousand modules in
    /// each folder, and starts in half the time.
    async fn launch(&self) -> Result<(), String> {
        let flags = "-noinput -s rabbit boot -boot start_sasl \
            +W w +P 1048576 +t 5000000 +S 2 +sbwt none +sbwtdcpu none +sbwtdio none \
            -syslog logger [] -syslog syslog_error_logger false \
            -kernel prevent_overlapping_partitions false \
            -kernel inet_dist_use_interface {127,0,0,1}";
        let flags: Vec<&str> = flags.split_whitespace().collect();
        let env = self.environment();
        let pid = self.guard.start(&env, &PathBuf::from("erl"), &flags);
        self.pid.store(pid, Ordering::Relaxed);

        let end = Instant::now() + START_TIMEOUT;
        while process::alive(pid) && Instant::now() < end {
            if self.accepts_clients().await && process::alive(pid) {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Err(format!("RabbitMQ did not start:\n{}", self.guard.log_tail()))
    }

    fn environment(&self) -> Vec<(&'static str, String)> {
        let path = |name: &str| self.home.join(name).to_string_lossy().into_owned();
        vec![
            ("HOME", path("")),
            ("ERL_EPMD_PORT", self.epmd_port.to_string()),
            ("ERL_EPMD_ADDRESS", "127.0.0.1".into()),
            // Also for the helper that RabbitMQ runs at start: it would start an epmd that detaches
            // itself and outlives the test.
            ("ERL_ZFLAGS", "-start_epmd false".into()),
            ("ERL_LIBS", path("libraries")),
            ("ERL_MAX_ETS_TABLES", "50000".into()),
            ("ERL_CRASH_DUMP_SECONDS", "0".into()),
            ("RABBITMQ_PLUGINS_DIR", path("libraries")),
            ("RABBITMQ_NODENAME", self.name()),
            ("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1".into()),
            ("RABBITMQ_NODE_PORT", self.amqp_port.to_string()),
            ("RABBITMQ_DIST_PORT", self.distribution_port.to_string()),
            ("RABBITMQ_MNESIA_BASE", path("mnesia")),
            ("RABBITMQ_LOG_BASE", path("log")),
            // Standard output, which goes to the log of the guard.
            ("RABBITMQ_LOGS", "-".into()),
            ("RABBITMQ_ENABLED_PLUGINS_FILE", path("enabled_plugins")),
            // The machine's own configuration is none of ours.
            ("RABBITMQ_CONF_ENV_FILE", "/dev/null".into()),
            // Without its extension.
            ("RABBITMQ_CONFIG_FILE", path("node")),
            ("RABBITMQ_CONFIG_FILES", path("none.d")),
            ("RABBITMQ_ADVANCED_CONFIG_FILE", path("none")),
        ]
    }

    async fn accepts_clients(&self) -> bool {
        // First by hand, with a bound: a client library may wait for a silent server for long.
        let probe = tokio::time::timeout(Duration::from_secs(5), async {
            let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", self.amqp_port)).await?;
            stream.write_all(b"AMQP\x00\x00\x09\x01").await?;
            stream.read_u8().await
        });
        // A method frame, not the version header of a refusal.
        if !matches!(probe.await, Ok(Ok(1))) {
            return false;
        }
        let url = self.url();
        let login = Connection::connect(&url, ConnectionProperties::default());
        match tokio::time::timeout(Duration::from_secs(10), login).await {
            Ok(Ok(connection)) => connection.close(200, "ready".into()).await.is_ok(),
            _ => false,
        }
    }
}

/// The folder that holds `plugins` and `sbin`.
fn find_installation() -> PathBuf {
    let debian = std::fs::read_dir("/usr/lib/rabbitmq/lib")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()));
    let mut places: Vec<PathBuf> = debian.collect();
    places.sort();
    // Where the official image has it.
    places.insert(0, PathBuf::from("/opt/rabbitmq"));
    places
        .into_iter()
        .rfind(|place| place.join("plugins").is_dir())
        .expect("RabbitMQ is needed: neither in /usr/lib/rabbitmq/lib nor in /opt/rabbitmq")
}

/// A folder of links to the libraries that the broker itself needs, and to these plug-ins.
fn link_libraries(installation: &Path, libraries: &Path, plugins: &[&str]) {
    std::fs::create_dir(libraries).expect("the folder is writable");
    for entry in std::fs::read_dir(installation.join("plugins")).expect("the folder is readable") {
        let entry = entry.expect("the folder is readable");
        let name = entry.file_name();
        let text = name.to_string_lossy();
        // `rabbitmq_management-3.10.8`
        let wanted = text.split_once('-').is_some_and(|(name, _)| plugins.contains(&name));
        let plugin = text.starts_with("rabbitmq_") && !text.starts_with("rabbitmq_prelaunch");
        if !plugin || wanted {
            std::os::unix::fs::symlink(entry.path(), libraries.join(name)).expect("the folder is writable");
        }
    }
}
