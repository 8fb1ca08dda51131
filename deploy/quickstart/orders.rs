//! A shop that takes orders, and tells the rest of the company about them through the outbox.
//!
//! Two functions are worth copying: [`take_order`] writes an order and the message about it in one transaction, and
//! [`Consumer::take`] handles each message once although it may arrive twice. The rest makes load and counts.
//!
//! `deploy/quickstart.sh` runs all of it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Args, Parser};
use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicQosOptions, ExchangeDeclareOptions, ExchangeDeleteOptions,
    QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, ConnectionProperties, ExchangeKind};
use serde_json::{Value, json};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection as _};
use tokio::signal::unix::{SignalKind, signal};
use uuid::Uuid;

#[derive(Parser)]
#[command(about = "A shop that takes orders and publishes them through an outbox")]
enum Command {
    /// Take orders
    Place(Place),
    /// Receive the messages about them, and keep count
    Consume(Consume),
    /// Print orders, backlog and messages once a second
    Watch(Watch),
    /// Compare what was committed with what arrived; fails when anything is missing or out of order
    Summary(Shop),
}

#[tokio::main]
async fn main() -> ExitCode {
    let result = match Command::parse() {
        Command::Place(args) => place(&args).await,
        Command::Consume(args) => consume(args).await,
        Command::Watch(args) => watch(&args).await,
        Command::Summary(shop) => summary(&shop).await,
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("orders: {error:#}");
            ExitCode::FAILURE
        }
    }
}

// ---------------------------------------------------------------------------------- taking orders

#[derive(Args)]
struct Place {
    /// Database with the outbox, `sqlite://shop.db`
    #[arg(long)]
    database: String,
    /// Customers who order, each of whom has an order of messages of its own
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..))]
    customers: u16,
    /// Orders a second
    #[arg(long, default_value = "200/s", value_parser = per_second)]
    rate: u32,
    /// Stop after this many
    #[arg(long, default_value_t = u64::MAX, hide_default_value = true)]
    count: u64,
    /// Stop when this file appears
    #[arg(long)]
    until_file: Option<PathBuf>,
}

/// One order of a customer.
struct Order<'a> {
    customer: &'a str,
    amount_cents: i64,
    paid: bool,
}

/// Takes an order: it and the message about it are committed together, or neither is.
///
/// Returns whether it was taken.
async fn take_order(database: &mut SqliteConnection, order: Order<'_>) -> sqlx::Result<bool> {
    // IMMEDIATE makes writers wait here, one behind the other, before they read or get an outbox id. So the ids of a
    // customer's rows are in the order of the commits, and that is the order in which the messages arrive.
    let mut transaction = database.begin_with("BEGIN IMMEDIATE").await?;
    let sequence: i64 = sqlx::query_scalar("SELECT coalesce(max(sequence), 0) + 1 FROM orders WHERE customer = ?")
        .bind(order.customer)
        .fetch_one(&mut *transaction)
        .await?;
    // Random, so that an order that is rolled back and the next one are never taken for each other.
    let number = Uuid::new_v4().to_string();
    sqlx::query("INSERT INTO orders (number, customer, sequence, amount_cents) VALUES (?, ?, ?, ?)")
        .bind(&number)
        .bind(order.customer)
        .bind(sequence)
        .bind(order.amount_cents)
        .execute(&mut *transaction)
        .await?;
    let payload = json!({
        "order": number,
        "customer": order.customer,
        "sequence": sequence,
        "amount_cents": order.amount_cents,
    });
    // All that the relay needs. Messages with the same ordering key arrive in the order of their rows.
    sqlx::query("INSERT INTO outbox (routing_key, ordering_key, payload) VALUES ('orders.placed', ?, ?)")
        .bind(order.customer)
        .bind(payload.to_string())
        .execute(&mut *transaction)
        .await?;
    if order.paid {
        transaction.commit().await?;
    } else {
        // Takes the message back with the order: nobody hears of it.
        transaction.rollback().await?;
    }
    Ok(order.paid)
}

async fn place(args: &Place) -> anyhow::Result<()> {
    let mut database = open(&args.database).await?;
    sqlx::raw_sql(
        "CREATE TABLE IF NOT EXISTS orders (
             number       TEXT    PRIMARY KEY,
             customer     TEXT    NOT NULL,
             sequence     INTEGER NOT NULL,
             amount_cents INTEGER NOT NULL,
             UNIQUE (customer, sequence)
         )",
    )
    .execute(&mut database)
    .await?;

    let mut stop = pin!(stopped()?);
    let mut clock = tokio::time::interval(Duration::from_secs(1) / args.rate);
    let (mut taken, mut rolled_back) = (0, 0);
    while taken < args.count && !args.until_file.as_ref().is_some_and(|file| file.exists()) {
        tokio::select! {
            _ = clock.tick() => {}
            () = &mut stop => break,
        }
        let customer = format!("customer-{:02}", fastrand::u16(..args.customers));
        let order = Order {
            customer: &customer,
            amount_cents: fastrand::i64(100..20_000),
            // One of twenty is refused, on purpose.
            paid: fastrand::u8(..20) > 0,
        };
        match take_order(&mut database, order).await? {
            true => taken += 1,
            false => rolled_back += 1,
        }
    }
    println!("{taken} orders taken, {rolled_back} rolled back on purpose");
    Ok(())
}

// ------------------------------------------------------------------------------ receiving messages

#[derive(Args)]
struct Consume {
    /// Broker; without it RELAY_AMQP_URL, which a process list does not show
    #[arg(long)]
    amqp: Option<String>,
    #[arg(long, default_value = "orders")]
    queue: String,
    #[arg(long, default_value = "shop")]
    exchange: String,
    /// The consumer's own database, created if missing
    #[arg(long)]
    inbox: String,
    /// File for the counts, as JSON, written several times a second
    #[arg(long)]
    findings: PathBuf,
    /// Delete queue and exchange at the end
    #[arg(long)]
    temporary: bool,
}

async fn consume(args: Consume) -> anyhow::Result<()> {
    Consumer::open(args).await?.run().await
}

struct Consumer {
    args: Consume,
    urls: Vec<String>,
    inbox: SqliteConnection,
    findings: Findings,
}

impl Consumer {
    async fn open(args: Consume) -> anyhow::Result<Self> {
        let urls = args.amqp.clone().or_else(amqp_from_environment);
        let urls = urls.context("where is the broker? --amqp or RELAY_AMQP_URL")?;
        let mut inbox = open(&args.inbox).await?;
        sqlx::raw_sql("CREATE TABLE IF NOT EXISTS inbox (message_id TEXT PRIMARY KEY, \"order\" TEXT)")
            .execute(&mut inbox)
            .await?;
        Ok(Self {
            args,
            urls: urls.split(',').map(|url| url.trim().to_string()).collect(),
            inbox,
            findings: Findings::default(),
        })
    }

    /// Handles one message, once however often it arrives.
    async fn take(&mut self, delivery: &Delivery) -> anyhow::Result<()> {
        let Some(message_id) = delivery.properties.message_id().as_ref().map(ToString::to_string) else {
            bail!("a message without message_id: something else than the relay publishes here");
        };
        let body: Value = serde_json::from_slice(&delivery.data).unwrap_or_default();

        // In one transaction: the note that this message was seen, and whatever the message is about. A crash leaves
        // both or neither. Here the order's number is all that it is about.
        let mut transaction = self.inbox.begin_with("BEGIN IMMEDIATE").await?;
        let noted = sqlx::query("INSERT INTO inbox (message_id, \"order\") VALUES (?, ?) ON CONFLICT DO NOTHING")
            .bind(&message_id)
            .bind(body["order"].as_str())
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        match noted.rows_affected() {
            0 => self.findings.again(delivery.redelivered),
            _ => self.findings.first(&message_id, &body),
        }

        // Only now may the broker forget it. If this ack is lost the message comes again, and the inbox knows it.
        let _ = delivery.acker.ack(BasicAckOptions::default()).await;
        Ok(())
    }

    /// Consumes until asked to stop, through every outage of the broker.
    async fn run(mut self) -> anyhow::Result<()> {
        let mut stop = pin!(stopped()?);
        let mut clock = tokio::time::interval(Duration::from_millis(200));
        for attempt in 0.. {
            let url = self.urls[attempt % self.urls.len()].clone();
            let subscription = tokio::time::timeout(Duration::from_secs(10), subscribe(&url, &self.args));
            let (connection, channel, mut deliveries) = tokio::select! {
                subscription = subscription => match subscription {
                    Ok(Ok(subscription)) => subscription,
                    _ => {
                        tokio::time::sleep(Duration::from_millis(200)).await;
                        continue;
                    }
                },
                () = &mut stop => return Ok(()),
            };
            println!("connected to the broker");
            loop {
                tokio::select! {
                    delivery = deliveries.next() => match delivery {
                        Some(Ok(delivery)) => self.take(&delivery).await?,
                        _ => break,
                    },
                    _ = clock.tick() => self.findings.write(&self.args.findings)?,
                    () = &mut stop => {
                        self.findings.write(&self.args.findings)?;
                        return goodbye(&connection, &channel, &self.args).await;
                    }
                }
            }
            println!("the broker is gone");
            self.findings.write(&self.args.findings)?;
        }
        Ok(())
    }
}

/// Declares what is consumed, so that it does not matter who starts first, and starts to consume.
async fn subscribe(url: &str, args: &Consume) -> lapin::Result<(Connection, Channel, lapin::Consumer)> {
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let (exchange, queue) = (args.exchange.as_str(), args.queue.as_str());
    let none = FieldTable::default;

    let durable = ExchangeDeclareOptions {
        durable: true,
        ..Default::default()
    };
    let topic = ExchangeKind::Topic;
    channel
        .exchange_declare(exchange.into(), topic, durable, none())
        .await?;
    // A quorum queue keeps what it confirmed, even when the broker is killed; a classic one does not sync its files.
    let mut quorum = none();
    quorum.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    channel
        .queue_declare(queue.into(), QueueDeclareOptions::durable(), quorum)
        .await?;
    let options = QueueBindOptions::default();
    channel
        .queue_bind(queue.into(), exchange.into(), "orders.*".into(), options, none())
        .await?;

    channel.basic_qos(200, BasicQosOptions::default()).await?;
    let options = BasicConsumeOptions::default();
    let deliveries = channel
        .basic_consume(queue.into(), "orders".into(), options, none())
        .await?;
    Ok((connection, channel, deliveries))
}

async fn goodbye(connection: &Connection, channel: &Channel, args: &Consume) -> anyhow::Result<()> {
    if args.temporary {
        let (queue, exchange) = (args.queue.as_str().into(), args.exchange.as_str().into());
        channel.queue_delete(queue, QueueDeleteOptions::default()).await?;
        channel
            .exchange_delete(exchange, ExchangeDeleteOptions::default())
            .await?;
    }
    connection.close(200, "done".into()).await?;
    Ok(())
}

#[expect(
    clippy::disallowed_methods,
    reason = "an application of its own, without the relay's configuration"
)]
fn amqp_from_environment() -> Option<String> {
    std::env::var("RELAY_AMQP_URL").ok()
}

/// What a consumer can tell about the messages.
#[derive(Default)]
struct Findings {
    /// Different ones.
    distinct: u64,
    /// Published more than once by the relay: it did not see the confirm before a connection or a process died.
    duplicates: u64,
    /// Delivered more than once by the broker, because this consumer's ack was lost. Nobody's duplicate.
    redelivered: u64,
    /// Orders that came after a later one of the same customer.
    out_of_order: u64,
    /// By customer: how many orders came, and the highest sequence among them.
    customers: HashMap<String, (u64, u64)>,
}

impl Findings {
    fn first(&mut self, message_id: &str, body: &Value) {
        self.distinct += 1;
        let (Some(customer), Some(sequence)) = (body["customer"].as_str(), body["sequence"].as_u64()) else {
            println!("message {message_id}, not an order: {body}");
            return;
        };
        let (orders, highest) = self.customers.entry(customer.to_string()).or_default();
        *orders += 1;
        if sequence <= *highest {
            self.out_of_order += 1;
        }
        *highest = sequence.max(*highest);
    }

    fn again(&mut self, redelivered: bool) {
        match redelivered {
            true => self.redelivered += 1,
            false => self.duplicates += 1,
        }
    }

    fn write(&self, path: &Path) -> anyhow::Result<()> {
        let gaps = |(orders, highest): &(u64, u64)| highest.saturating_sub(*orders);
        let text = json!({
            "messages": self.distinct + self.duplicates,
            "distinct": self.distinct,
            "duplicates": self.duplicates,
            "redelivered": self.redelivered,
            "out_of_order": self.out_of_order,
            "gaps": self.customers.values().map(gaps).sum::<u64>(),
        });
        // Renamed into place: a reader never sees half of it.
        let draft = path.with_extension("draft");
        std::fs::write(&draft, format!("{text}\n"))
            .and_then(|()| std::fs::rename(&draft, path))
            .with_context(|| format!("{}", path.display()))
    }
}

// ------------------------------------------------------------------------------------ both compared

#[derive(Args)]
struct Shop {
    /// Database with orders and outbox
    #[arg(long)]
    database: String,
    /// The consumer's database
    #[arg(long)]
    inbox: String,
    /// The consumer's counts
    #[arg(long)]
    findings: PathBuf,
}

#[derive(Args)]
struct Watch {
    #[command(flatten)]
    shop: Shop,
    /// How long
    #[arg(long = "for", value_parser = humantime::parse_duration)]
    duration: Duration,
    /// End as soon as every row of the outbox has arrived; fail when that is not in time
    #[arg(long)]
    until_drained: bool,
}

async fn watch(args: &Watch) -> anyhow::Result<()> {
    let mut database = open(&args.shop.database).await?;
    let start = Instant::now();
    let mut clock = tokio::time::interval(Duration::from_millis(250));
    for tick in 0_u64.. {
        clock.tick().await;
        let (rows, unsent) = outbox(&mut database).await?;
        let findings = read(&args.shop.findings)?;
        let distinct = count(&findings, "distinct");
        let drained = args.until_drained && unsent == 0 && distinct == rows;
        let over = start.elapsed() >= args.duration;
        if tick % 4 == 0 || drained {
            let messages = count(&findings, "messages");
            println!("   orders {rows:>6}   waiting in the outbox {unsent:>5}   messages arrived {messages:>6}");
        }
        if drained || (over && !args.until_drained) {
            return Ok(());
        } else if over {
            bail!(
                "after {:?}: {rows} rows in the outbox, {unsent} not sent, {distinct} arrived",
                args.duration
            );
        }
    }
    Ok(())
}

async fn summary(shop: &Shop) -> anyhow::Result<()> {
    let mut database = open(&shop.database).await?;
    let inbox = SqliteConnectOptions::from_str(&shop.inbox)?;
    sqlx::query("ATTACH DATABASE ? AS consumer")
        .bind(inbox.get_filename().to_string_lossy())
        .execute(&mut database)
        .await?;
    let orders: i64 = sqlx::query_scalar("SELECT count(*) FROM orders")
        .fetch_one(&mut database)
        .await?;
    // By number, not by counting: one order too few and one too many must not look like none.
    let missing: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM orders WHERE number NOT IN (SELECT \"order\" FROM inbox WHERE \"order\" IS NOT NULL)",
    )
    .fetch_one(&mut database)
    .await?;
    let not_committed: i64 =
        sqlx::query_scalar("SELECT count(*) FROM inbox WHERE \"order\" NOT IN (SELECT number FROM orders)")
            .fetch_one(&mut database)
            .await?;
    let (_, unsent) = outbox(&mut database).await?;
    let findings = read(&shop.findings)?;
    let out_of_order = count(&findings, "out_of_order");

    println!("   orders committed      {orders:>7}");
    println!("   messages              {:>7}", count(&findings, "messages"));
    println!(
        "   duplicates            {:>7}   (allowed, and recognised by message_id)",
        count(&findings, "duplicates")
    );
    println!(
        "   redelivered           {:>7}   (by the broker to a consumer that lost its connection)",
        count(&findings, "redelivered")
    );
    println!("   out of order          {out_of_order:>7}");
    println!("   missing               {missing:>7}");
    println!("   sent, not committed   {not_committed:>7}");
    println!("   left in the outbox    {unsent:>7}");
    if orders == 0 {
        bail!("there was no order");
    }
    if missing + not_committed + out_of_order + unsent > 0 {
        bail!("not every order arrived once it was committed, in order");
    }
    Ok(())
}

/// Rows of the outbox: all, and those not marked sent.
async fn outbox(database: &mut SqliteConnection) -> sqlx::Result<(i64, i64)> {
    sqlx::query_as("SELECT (SELECT count(*) FROM outbox), (SELECT count(*) FROM outbox WHERE sent_at IS NULL)")
        .fetch_one(database)
        .await
}

fn read(findings: &Path) -> anyhow::Result<Value> {
    let text = std::fs::read(findings).with_context(|| format!("{}", findings.display()))?;
    Ok(serde_json::from_slice(&text)?)
}

fn count(findings: &Value, name: &str) -> i64 {
    findings[name].as_i64().unwrap_or_default()
}

// -------------------------------------------------------------------------------------------- tools

async fn open(url: &str) -> anyhow::Result<SqliteConnection> {
    let options = SqliteConnectOptions::from_str(url)?
        .create_if_missing(true)
        // Readers and the one writer do not wait for each other.
        .journal_mode(SqliteJournalMode::Wal)
        // Survives the crash of a process; a power cut may take the last commits, never only a part of one.
        .synchronous(SqliteSynchronous::Normal)
        .busy_timeout(Duration::from_secs(30));
    options.connect().await.with_context(|| format!("cannot open {url}"))
}

/// Waits for SIGTERM or SIGINT.
fn stopped() -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

fn per_second(text: &str) -> Result<u32, String> {
    let number = text.strip_suffix("/s").unwrap_or(text).parse();
    match number {
        Ok(rate @ 1..=100_000) => Ok(rate),
        _ => Err("like 200/s, 1 to 100000".into()),
    }
}
