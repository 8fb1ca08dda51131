//! The table of every variable.

use super::{CONFIG_FILE, PRESET, Variable};

const fn optional(name: &'static str, default: &'static str, help: &'static str) -> Variable {
    Variable {
        name,
        default: Some(default),
        required: false,
        secret: false,
        help,
        alias: None,
    }
}

const fn without_default(name: &'static str, help: &'static str) -> Variable {
    Variable {
        default: None,
        ..optional(name, "", help)
    }
}

/// A secret that need not be set; `help` is to say that it may be in a file.
const fn optional_secret(name: &'static str, help: &'static str) -> Variable {
    Variable {
        secret: true,
        ..without_default(name, help)
    }
}

const fn required_secret(name: &'static str, alias: &'static str, help: &'static str) -> Variable {
    Variable {
        required: true,
        secret: true,
        alias: Some(alias),
        ..without_default(name, help)
    }
}

/// Every variable the relay reads, in the order of the documentation.
pub const VARIABLES: &[Variable] = &[
    required_secret(
        "RELAY_DATABASE_URL",
        "DATABASE_URL",
        "`postgres://`, `mysql://` or `sqlite://`; percent-encode special characters in the password",
    ),
    required_secret(
        "RELAY_AMQP_URL",
        "AMQP_URL",
        "`amqp://` or `amqps://`; several, comma-separated, are tried in turn; a comma in a password is written `%2C`",
    ),
    without_default(
        "RELAY_AMQP_EXCHANGE",
        "exchange of rows that name none, at most 255 bytes; empty: the default exchange",
    ),
    without_default(
        "RELAY_AMQP_DEDUP_HEADER",
        "header with the `message_id`, for a broker that drops duplicates by it: `x-deduplication-header`",
    ),
    optional(
        "RELAY_AMQP_CONNECT_TIMEOUT",
        "10s",
        "bound of one attempt to connect to the broker, 1ms to 10m",
    ),
    without_default(
        "RELAY_AMQP_CA_FILE",
        "PEM file of the authorities that may sign the broker's certificate, in place of the system's; this and the next ones are the paths of files, read again for each connection",
    ),
    without_default(
        "RELAY_AMQP_CLIENT_CERT_FILE",
        "PEM file of the certificate shown to the broker, with its intermediates",
    ),
    without_default("RELAY_AMQP_CLIENT_KEY_FILE", "PEM file of its key, not encrypted"),
    without_default(
        "RELAY_AMQP_SERVER_NAME",
        "name that the broker's certificate must have, where it is not the host of the URL",
    ),
    optional_secret(
        "RELAY_AMQP_MANAGEMENT_URL",
        "of RabbitMQ's management plug-in, for `check` and `status` only: `https://user:password@host:15671`; also `RELAY_AMQP_MANAGEMENT_URL_FILE`, a file that holds it",
    ),
    optional("RELAY_DATABASE_TIMEOUT", "30s", "bound of each statement, 1ms to 1h"),
    without_default(
        "RELAY_DATABASE_CA_FILE",
        "PEM file of the authorities that may sign the database server's certificate; with it the server must have one for its host name",
    ),
    without_default(
        "RELAY_DATABASE_CLIENT_CERT_FILE",
        "PEM file of the certificate shown to the database server, with its intermediates",
    ),
    without_default("RELAY_DATABASE_CLIENT_KEY_FILE", "PEM file of its key, not encrypted"),
    optional(
        "RELAY_REQUIRE_TLS",
        "false",
        "`true`: no connection without TLS to broker, database or collector of spans, but on the loopback and through unix sockets",
    ),
    optional(
        "RELAY_OUTBOX_TABLE",
        "outbox",
        "`table` or `schema.table`, taken as written, case included; `\"My Table\"` for other than plain names",
    ),
    optional(
        "RELAY_OUTBOX_ON_SENT",
        "mark",
        "`mark` sets `sent_at`, `delete` removes the row",
    ),
    optional(
        "RELAY_OUTBOX_RETENTION",
        "7d",
        "sent rows older than this are purged in small batches, 1s to 3650d; `off` keeps them",
    ),
    without_default(
        PRESET,
        "columns of a well-known table: `debezium` (id, aggregatetype, aggregateid, type, payload) or `watermill`; what is set by hand goes before it",
    ),
    without_default(
        "RELAY_COLUMN_ID",
        "column that gives the order, `id` by default; without a whole number in it the relay numbers the rows itself",
    ),
    without_default(
        "RELAY_COLUMN_MESSAGE_ID",
        "column of the AMQP `message_id`: uuid, text or number; for this and the next ones `-` says that there is none",
    ),
    without_default("RELAY_COLUMN_EXCHANGE", "column of the exchange"),
    without_default("RELAY_COLUMN_ROUTING_KEY", "column of the routing key"),
    without_default("RELAY_COLUMN_ORDERING_KEY", "column of the ordering key"),
    without_default("RELAY_COLUMN_TYPE", "column of the AMQP `type`"),
    without_default(
        "RELAY_COLUMN_CONTENT_TYPE",
        "column of the AMQP `content_type`; without one it is `application/json`",
    ),
    without_default(
        "RELAY_COLUMN_HEADERS_JSON",
        "column with a JSON object of headers, `headers` by default",
    ),
    without_default("RELAY_COLUMN_PROPERTIES", "column with a JSON object of properties"),
    without_default("RELAY_COLUMN_PAYLOAD", "column of the body"),
    without_default("RELAY_COLUMN_CREATED_AT", "column of the AMQP `timestamp`, a time"),
    without_default(
        "RELAY_COLUMN_AVAILABLE_AT",
        "column of the time before which a row is not published",
    ),
    without_default(
        "RELAY_COLUMN_ATTEMPTS",
        "column the relay counts refusals in; with one of the next three missing, all four are in a table of its own",
    ),
    without_default("RELAY_COLUMN_NEXT_ATTEMPT_AT", "column of the time of the next try"),
    without_default("RELAY_COLUMN_LAST_ERROR", "column of the last refusal's reason"),
    without_default("RELAY_COLUMN_DEAD_AT", "column of the time a row was given up"),
    without_default(
        "RELAY_COLUMN_SENT_AT",
        "column the relay marks sent rows in, a time or a boolean",
    ),
    without_default(
        "RELAY_COLUMN_HEADERS",
        "more columns as headers: `tenant_id,trace_id:traceparent` (column, or column:header)",
    ),
    without_default(
        "RELAY_ROUTING_KEY",
        "routing key in place of a column: text and columns in braces, `{aggregatetype}.{type}`; `{{` is a brace",
    ),
    without_default(
        "RELAY_EXCHANGE",
        "exchange in place of a column, likewise; empty text: `RELAY_AMQP_EXCHANGE`",
    ),
    without_default("RELAY_TYPE", "AMQP `type` in place of a column, likewise"),
    optional(
        "RELAY_MESSAGE_FORMAT",
        "plain",
        "`plain`, or CloudEvents 1.0: `cloudevents-binary` (attributes are headers), `cloudevents-structured` (a JSON object with the data in it)",
    ),
    without_default(
        "RELAY_CLOUDEVENTS_SOURCE",
        "`source` of the events, a URI reference; for this and the next ones text and columns in braces, as for `RELAY_ROUTING_KEY`",
    ),
    without_default(
        "RELAY_CLOUDEVENTS_TYPE",
        "`type` of the events; without it that of the row",
    ),
    without_default("RELAY_CLOUDEVENTS_SUBJECT", "`subject` of the events"),
    without_default(
        "RELAY_CLOUDEVENTS_DATASCHEMA",
        "`dataschema` of the events, an absolute URI: `https://schemas.example.com/{type}`",
    ),
    without_default(
        "RELAY_CLOUDEVENTS_EXTENSIONS",
        "more attributes, `tenantid={tenant_id},partitionkey={ordering_key}`; names are 1 to 20 lower-case letters and digits",
    ),
    optional(
        "RELAY_CLOUDEVENTS_PREFIX",
        "cloudEvents_",
        "what names of headers with attributes begin with: `cloudEvents_`, `cloudEvents:` or `ce-` (Knative)",
    ),
    optional(
        "RELAY_ORDERING",
        "strict",
        "`strict`: one message of a key at a time; `pipelined`: many in flight per key, a refusal can let later ones pass; `none`: no order",
    ),
    optional(
        "RELAY_ON_DEAD_LETTER",
        "continue",
        "what a dead letter does to its key: `continue` with later rows or `block` them",
    ),
    optional(
        "RELAY_PARTITIONS",
        "16",
        "shares that replicas divide among them, 1 to 256; 1: one active relay, the others stand by",
    ),
    optional(
        "RELAY_LEASE_TTL",
        "10s",
        "a dead replica's shares are taken over after this long, 2s to 1h",
    ),
    optional(
        "RELAY_POLL_MIN_INTERVAL",
        "2ms",
        "from one read to the next while rows arrive, 1ms to 1h",
    ),
    optional(
        "RELAY_POLL_MAX_INTERVAL",
        "100ms",
        "longest pause between reads while idle, 1ms to 1h",
    ),
    optional(
        "RELAY_POLL_SWEEP_INTERVAL",
        "15s",
        "how often everything unsent is looked through, 1ms to 50s",
    ),
    optional("RELAY_POLL_BATCH_SIZE", "1000", "rows per read, 1 to 10000"),
    optional(
        "RELAY_PUBLISH_IN_FLIGHT",
        "1000",
        "messages awaiting their confirm, 1 to 65535",
    ),
    optional(
        "RELAY_PUBLISH_IN_FLIGHT_BYTES",
        "16MiB",
        "bodies awaiting their confirm, 1KiB to 16GiB; a larger message goes alone",
    ),
    optional(
        "RELAY_PUBLISH_CONFIRM_TIMEOUT",
        "30s",
        "a message without a confirm after this long is published again, 1ms to 1h",
    ),
    optional(
        "RELAY_MESSAGE_MAX_BYTES",
        "16MiB",
        "a larger body is a dead letter, 1B to 128MiB",
    ),
    optional(
        "RELAY_MESSAGE_COMPRESSION",
        "none",
        "`gzip` or `zstd` compresses bodies, and sets `content_encoding`; rows that set one are left as they are",
    ),
    optional(
        "RELAY_MESSAGE_COMPRESSION_MIN_BYTES",
        "4KiB",
        "smaller bodies are not compressed, 1B to 128MiB",
    ),
    without_default(
        "RELAY_MESSAGE_ALLOW_HEADERS",
        "reserved headers that rows may have all the same, comma-separated: `CC,BCC`",
    ),
    without_default(
        "RELAY_MESSAGE_REPEAT_HEADER",
        "boolean header that is `false` where a message was surely not published before: `outbox-repeat`",
    ),
    optional(
        "RELAY_RETRY_MIN_DELAY",
        "1s",
        "first backoff of a refused message, 1ms to 1d, with full jitter",
    ),
    optional(
        "RELAY_RETRY_MAX_DELAY",
        "5m",
        "longest backoff of a refused message, 1ms to 30d",
    ),
    optional(
        "RELAY_RETRY_MAX_ATTEMPTS",
        "10",
        "refusals before a message is a dead letter, 1 to 1000000; outages do not count",
    ),
    optional(
        "RELAY_SHUTDOWN_GRACE",
        "25s",
        "how long a stop waits for confirms and marks, 1ms to 1h",
    ),
    optional(
        "RELAY_SHUTDOWN_DRAIN",
        "false",
        "`true`: publish what is pending before stopping (Jobs)",
    ),
    optional(
        "RELAY_ADMIN_LISTEN",
        "0.0.0.0:9464",
        "address and port of metrics and health, `127.0.0.1:9464` or `[::]:9464`",
    ),
    optional_secret(
        "RELAY_ADMIN_TOKEN",
        "bearer token, 16 to 256 characters, for endpoints that change something; also `RELAY_ADMIN_TOKEN_FILE`, a file that holds it",
    ),
    without_default(
        "RELAY_ADMIN_TLS_CERT_FILE",
        "PEM file of the certificate that the endpoints are served with, over TLS only; read again when it changes",
    ),
    without_default("RELAY_ADMIN_TLS_KEY_FILE", "PEM file of its key, not encrypted"),
    optional(
        "RELAY_LOG",
        "info",
        "level, or levels per module: `info,outbox_relay=debug`; levels: `off` `error` `warn` `info` `debug` `trace`",
    ),
    optional(
        "RELAY_LOG_FORMAT",
        "auto",
        "`auto` is `text` on a terminal, else `json`",
    ),
    without_default(
        CONFIG_FILE,
        "TOML file beneath the environment; `RELAY_POLL_BATCH_SIZE` is `poll_batch_size` or `[poll] batch_size` there",
    ),
];
