//! A consumer that gives each message its effect once, though it may arrive twice, and though this program may be killed at any
//! moment: it has no other way to stop. It keeps count of what customers spend; [`handle`] is what to copy.
//!
//! `cargo run --example consumer -- --amqp amqp://localhost --queue orders --database postgres://localhost/app`

use std::convert::Infallible;
use std::time::Duration;

use anyhow::bail;
use clap::Parser;
use futures_util::StreamExt;
use lapin::message::Delivery;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions, BasicRejectOptions};
use lapin::types::FieldTable;
use lapin::{Connection, ConnectionProperties};
use serde_json::Value;
use sqlx::{AnyConnection, Connection as _};

#[derive(Parser)]
#[command(about = "Counts what customers spend, each order once")]
struct Args {
    /// Broker, `amqp://user:password@host:5672/vhost`
    #[arg(long)]
    amqp: String,
    /// Queue, which must be there
    #[arg(long)]
    queue: String,
    /// Database with the tables `inbox` and `spent`: `postgres://`, `mysql://` or `sqlite://`
    #[arg(long)]
    database: String,
}

/// The statements of a kind of database.
struct Sql {
    begin: &'static str,
    note: &'static str,
    effect: &'static str,
}

const POSTGRES: Sql = Sql {
    begin: "BEGIN",
    note: "INSERT INTO inbox (message_id) VALUES ($1) ON CONFLICT DO NOTHING",
    effect: "INSERT INTO spent (customer, orders, cents) VALUES ($1, 1, $2)
             ON CONFLICT (customer) DO UPDATE SET orders = spent.orders + 1, cents = spent.cents + excluded.cents",
};

/// MariaDB, too.
const MYSQL: Sql = Sql {
    begin: "BEGIN",
    note: "INSERT IGNORE INTO inbox (message_id) VALUES (?)",
    effect: "INSERT INTO spent (customer, orders, cents) VALUES (?, 1, ?)
             ON DUPLICATE KEY UPDATE orders = orders + 1, cents = cents + VALUES(cents)",
};

const SQLITE: Sql = Sql {
    // Waits for other writers here, and not in the middle, where SQLite could only give up.
    begin: "BEGIN IMMEDIATE",
    ..POSTGRES
};

/// What became of a message.
enum Handled {
    Now,
    Before,
    /// It will be no better the next time.
    Never(String),
}

#[tokio::main]
async fn main() {
    let args = Args::parse();
    sqlx::any::install_default_drivers();
    loop {
        // An outage of database or broker, whatever its reason: what was not committed comes again.
        let Err(problem) = consume(&args).await;
        eprintln!("consumer: {problem:#}; trying again");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn consume(args: &Args) -> anyhow::Result<Infallible> {
    let sql = match args.database.split(':').next() {
        Some("mysql" | "mariadb") => MYSQL,
        Some("sqlite") => SQLITE,
        _ => POSTGRES,
    };
    let mut database = AnyConnection::connect(&args.database).await?;
    let broker = Connection::connect(&args.amqp, ConnectionProperties::default()).await?;
    let channel = broker.create_channel().await?;
    // So many are on their way to here at a time; those that are not acknowledged come again after a crash.
    channel.basic_qos(100, BasicQosOptions::default()).await?;
    let (options, none) = (BasicConsumeOptions::default(), FieldTable::default());
    let mut deliveries = channel
        .basic_consume(args.queue.as_str().into(), "consumer".into(), options, none)
        .await?;
    println!("consuming");
    while let Some(delivery) = deliveries.next().await {
        let delivery = delivery?;
        match handle(&mut database, &sql, &delivery).await? {
            // Only now may the broker forget it. If this is lost the message comes again, and the inbox knows it.
            Handled::Now => delivery.acker.ack(BasicAckOptions::default()).await?,
            Handled::Before => {
                println!("handled before");
                delivery.acker.ack(BasicAckOptions::default()).await?
            }
            // To the dead letter exchange of the queue, if it has one.
            Handled::Never(reason) => {
                println!("rejected: {reason}");
                delivery.acker.reject(BasicRejectOptions { requeue: false }).await?
            }
        };
    }
    bail!("the broker ended it")
}

/// Note and effect in one transaction: a crash leaves both or neither.
async fn handle(database: &mut AnyConnection, sql: &Sql, delivery: &Delivery) -> anyhow::Result<Handled> {
    let Some(message_id) = delivery.properties.message_id() else {
        return Ok(Handled::Never("no message_id: the relay did not send it".to_owned()));
    };
    let order: Value = serde_json::from_slice(&delivery.data).unwrap_or_default();
    let (Some(customer), Some(cents)) = (order["customer"].as_str(), order["cents"].as_i64()) else {
        return Ok(Handled::Never(format!("{message_id} is no order")));
    };
    let mut transaction = database.begin_with(sql.begin).await?;
    // Another consumer may be handling a copy: then this waits until that one has committed, or has failed.
    let noted = sqlx::query(sql.note)
        .bind(message_id.as_str())
        .execute(&mut *transaction)
        .await?
        .rows_affected();
    if noted == 0 {
        return Ok(Handled::Before);
    }
    sqlx::query(sql.effect)
        .bind(customer)
        .bind(cents)
        .execute(&mut *transaction)
        .await?;
    transaction.commit().await?;
    Ok(Handled::Now)
}
