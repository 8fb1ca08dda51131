//! Which variable becomes which field, and within which bounds.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use crate::message::{Coding, Compression, OwnHeaders, reserved};

use super::{
    CloudEvents, Config, HEADER_COLUMNS, Identity, LogFormat, Mapping, MessageSettings, OnDeadLetter, OnSent, Ordering,
    Outbox, Poll, Publish, Retry, Shutdown, TableName, TableNameError, Tls, Traces,
    findings::shown,
    parse::{self, Reader},
    template::no_url,
};

const DEDUP: &str = "RELAY_AMQP_DEDUP_HEADER";
const REPEAT: &str = "RELAY_MESSAGE_REPEAT_HEADER";

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);

impl Config {
    pub(super) fn read(from: &mut Reader<'_>, traces: Option<Traces>) -> Self {
        let cloudevents = CloudEvents::read(from);
        let (amqp_tls, database_tls) = Tls::read_both(from);
        let traces = traces.and_then(|traces| traces.allowed(amqp_tls.required, from));
        let outbox = Outbox::read(from, cloudevents.as_ref());
        let message = MessageSettings::read(from);
        message.check_headers(from, &outbox.mapping, cloudevents.as_ref());
        Self {
            database_url: from.database_url("RELAY_DATABASE_URL"),
            amqp_urls: from.broker_urls("RELAY_AMQP_URL", &amqp_tls),
            amqp_management_url: from.management_url("RELAY_AMQP_MANAGEMENT_URL", &amqp_tls),
            amqp_exchange: from.short_text("RELAY_AMQP_EXCHANGE"),
            amqp_connect_timeout: from.duration("RELAY_AMQP_CONNECT_TIMEOUT", MS..=10 * MINUTE),
            amqp_tls,
            database_timeout: from.duration("RELAY_DATABASE_TIMEOUT", MS..=HOUR),
            database_tls,
            outbox,
            cloudevents,
            ordering: Ordering::read(from),
            on_dead_letter: OnDeadLetter::read(from),
            partitions: from.integer("RELAY_PARTITIONS", 1..=256),
            lease_ttl: from.duration("RELAY_LEASE_TTL", 2 * SECOND..=HOUR),
            poll: Poll::read(from),
            publish: Publish::read(from),
            message,
            retry: Retry::read(from),
            shutdown: Shutdown {
                grace: from.duration("RELAY_SHUTDOWN_GRACE", MS..=HOUR),
                drain: from.boolean("RELAY_SHUTDOWN_DRAIN"),
            },
            admin_listen: read_listen(from, "RELAY_ADMIN_LISTEN"),
            admin_token: from.token("RELAY_ADMIN_TOKEN"),
            admin_identity: Identity::read(from, "RELAY_ADMIN_TLS_CERT_FILE", "RELAY_ADMIN_TLS_KEY_FILE"),
            log: from.parsed("RELAY_LOG", String::new(), parse::log_directives),
            log_format: LogFormat::read(from),
            traces,
            in_force: from.in_force(),
        }
    }
}

impl Outbox {
    fn read(from: &mut Reader<'_>, events: Option<&CloudEvents>) -> Self {
        let placeholder = TableName::placeholder();
        let parse_table = |text: &str| {
            text.parse()
                .map_err(|error: TableNameError| format!("{error}; it {}", shown(text)))
        };
        let parse_retention = |text: &str| match text {
            "off" => Ok(None),
            text => parse::duration(text, &(SECOND..=3650 * DAY))
                .map(Some)
                .map_err(|message| format!("{message}; `off` keeps sent rows")),
        };
        let on_sent = from.choice(
            "RELAY_OUTBOX_ON_SENT",
            OnSent::Mark,
            &[("mark", OnSent::Mark), ("delete", OnSent::Delete)],
        );
        Self {
            table: from.parsed("RELAY_OUTBOX_TABLE", placeholder, parse_table),
            on_sent,
            retention: from.parsed("RELAY_OUTBOX_RETENTION", None, parse_retention),
            mapping: Mapping::read(from, on_sent, events),
        }
    }
}

impl Ordering {
    fn read(from: &mut Reader<'_>) -> Self {
        from.choice(
            "RELAY_ORDERING",
            Self::Strict,
            &[
                ("strict", Self::Strict),
                ("pipelined", Self::Pipelined),
                ("none", Self::None),
            ],
        )
    }
}

impl OnDeadLetter {
    fn read(from: &mut Reader<'_>) -> Self {
        from.choice(
            "RELAY_ON_DEAD_LETTER",
            Self::Continue,
            &[("continue", Self::Continue), ("block", Self::Block)],
        )
    }
}

impl LogFormat {
    fn read(from: &mut Reader<'_>) -> Self {
        from.choice(
            "RELAY_LOG_FORMAT",
            Self::Auto,
            &[("auto", Self::Auto), ("text", Self::Text), ("json", Self::Json)],
        )
    }
}

impl Poll {
    fn read(from: &mut Reader<'_>) -> Self {
        const MIN: &str = "RELAY_POLL_MIN_INTERVAL";
        const MAX: &str = "RELAY_POLL_MAX_INTERVAL";
        let poll = Self {
            min_interval: from.duration(MIN, MS..=HOUR),
            max_interval: from.duration(MAX, MS..=HOUR),
            // Delayed rows without a key are looked for by the sweep, from a minute before their time.
            sweep_interval: from.duration("RELAY_POLL_SWEEP_INTERVAL", MS..=Duration::from_secs(50)),
            batch_size: from.integer("RELAY_POLL_BATCH_SIZE", 1..=10_000),
        };
        from.ordered((MIN, poll.min_interval), (MAX, poll.max_interval));
        poll
    }
}

impl Publish {
    fn read(from: &mut Reader<'_>) -> Self {
        Self {
            in_flight: from.integer("RELAY_PUBLISH_IN_FLIGHT", 1..=65_535),
            in_flight_bytes: from.bytes("RELAY_PUBLISH_IN_FLIGHT_BYTES", (1 << 10, "1KiB"), (16 << 30, "16GiB")),
            confirm_timeout: from.duration("RELAY_PUBLISH_CONFIRM_TIMEOUT", MS..=HOUR),
            // RabbitMQ's own limit was 128 MiB before 4.0, which lowered it to 16 MiB.
            max_message_bytes: from.bytes("RELAY_MESSAGE_MAX_BYTES", (1, "1B"), (128 << 20, "128MiB")),
        }
    }
}

impl MessageSettings {
    fn read(from: &mut Reader<'_>) -> Self {
        let coding = from.choice(
            "RELAY_MESSAGE_COMPRESSION",
            None,
            &[
                ("none", None),
                ("gzip", Some(Coding::Gzip)),
                ("zstd", Some(Coding::Zstd)),
            ],
        );
        let min_bytes = from.bytes("RELAY_MESSAGE_COMPRESSION_MIN_BYTES", (1, "1B"), (128 << 20, "128MiB"));
        let own_headers = OwnHeaders {
            dedup: from.optional(DEDUP, own_header),
            repeat: from.optional(REPEAT, own_header),
        };
        Self {
            compression: coding.map(|coding| Compression { coding, min_bytes }),
            allowed_headers: from
                .optional("RELAY_MESSAGE_ALLOW_HEADERS", allowed_headers)
                .unwrap_or_default(),
            own_headers,
        }
    }

    /// Finds headers that cannot be: two of one name, and those that would make every row a dead letter.
    fn check_headers(&self, from: &mut Reader<'_>, mapping: &Mapping, events: Option<&CloudEvents>) {
        let own = [(DEDUP, &self.own_headers.dedup), (REPEAT, &self.own_headers.repeat)];
        let own = own
            .into_iter()
            .filter_map(|(variable, name)| Some((variable, name.as_ref()?)));
        for (variable, name) in own {
            if variable == REPEAT && Some(name) == self.own_headers.dedup.as_ref() {
                from.problem(variable, format!("is the header of {DEDUP}; take another"));
            }
            if mapping.headers.iter().any(|(_, header)| header == name) {
                from.problem(
                    variable,
                    format!("is a header of {HEADER_COLUMNS} as well; take another"),
                );
            }
            if ["traceparent", "tracestate"].contains(&name.as_str()) {
                from.problem(variable, "is a header of traces; take another".to_owned());
            }
            if let Some(events) = events.filter(|events| name.starts_with(events.prefix)) {
                let prefix = events.prefix;
                from.problem(
                    variable,
                    format!("begins with {prefix}, as headers do that are attributes of CloudEvents; take another"),
                );
            }
        }
        for (column, header) in &mapping.headers {
            if let Some(reason) = reserved(header).filter(|_| !self.allowed_headers.contains(header)) {
                let advice = format!(
                    "makes the reserved header {header} of the column {column}: {reason}; give it another name, or \
                     allow it with RELAY_MESSAGE_ALLOW_HEADERS"
                );
                from.problem(HEADER_COLUMNS, advice);
            }
        }
    }
}

fn own_header(text: &str) -> Result<String, String> {
    no_url(text)?;
    match reserved(text) {
        Some(reason) => Err(format!("is a reserved header: {reason}")),
        None if text.is_empty() => Err("is blank; write a name, or unset it".to_owned()),
        None if text.len() > 255 => Err("must be at most 255 bytes long".to_owned()),
        None => Ok(text.to_owned()),
    }
}

fn allowed_headers(text: &str) -> Result<Vec<String>, String> {
    no_url(text)?;
    let names = text.split(',').map(str::trim).map(|name| match reserved(name) {
        Some(_) => Ok(name.to_owned()),
        None => Err(format!(
            "must be names of reserved headers, separated by commas; others need no leave, and one {}",
            shown(name)
        )),
    });
    names.collect()
}

impl Retry {
    fn read(from: &mut Reader<'_>) -> Self {
        const MIN: &str = "RELAY_RETRY_MIN_DELAY";
        const MAX: &str = "RELAY_RETRY_MAX_DELAY";
        let retry = Self {
            min_delay: from.duration(MIN, MS..=DAY),
            max_delay: from.duration(MAX, MS..=30 * DAY),
            max_attempts: from.integer("RELAY_RETRY_MAX_ATTEMPTS", 1..=1_000_000),
        };
        from.ordered((MIN, retry.min_delay), (MAX, retry.max_delay));
        retry
    }
}

fn read_listen(from: &mut Reader<'_>, name: &str) -> SocketAddr {
    let placeholder = (Ipv4Addr::UNSPECIFIED, 0).into();
    from.parsed(name, placeholder, |text| {
        let advice = "must be an IP address and a port, like `0.0.0.0:9464` or `[::]:9464`";
        text.parse().map_err(|_| format!("{advice}, but {}", shown(text)))
    })
}
