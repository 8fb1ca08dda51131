//! Names, templates and headers.

use lapin::types::AMQPValue;

use super::{migrate, with};
use crate::outbox::{Outbox, SECOND};
use crate::support::{Consumer, Received, until};

/// As in the examples of <https://www.w3.org/TR/trace-context/>.
const TRACE_PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01";
const TRACE_STATE: &str = "rojo=00f067aa0ba902b7,congo=t61rcWkgMzE";

/// In another schema (where there are any), all names quoted and up to 63 bytes long.
pub(super) async fn names_templates_and_headers_are_what_the_variables_say(database: &str) {
    let outbox = Outbox::without_tables(database, &["shop.EU.Made"]).await;
    let long = format!("The \"\"Outbox\"\" {}", "Ö".repeat(24));
    let (schema, key, text, flag) = match database {
        "postgres" => (
            "\"My App\".",
            "bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
            "text",
            "boolean NOT NULL DEFAULT false",
        ),
        "mariadb" => (
            "",
            "bigint AUTO_INCREMENT PRIMARY KEY",
            "varchar(200)",
            "boolean NOT NULL DEFAULT false",
        ),
        _ => (
            "",
            "INTEGER PRIMARY KEY AUTOINCREMENT",
            "TEXT",
            "BOOLEAN NOT NULL DEFAULT 0",
        ),
    };
    let quoted = |sql: &str| match database {
        "mariadb" => sql.replace("\"\"", "\u{1}").replace('"', "`").replace('\u{1}', "\""),
        _ => sql.to_owned(),
    };
    if !schema.is_empty() {
        outbox.db.run("CREATE SCHEMA \"My App\"").await;
    }
    let table = format!("{schema}\"{long}\"");
    outbox
        .db
        .run(&quoted(&format!(
            "CREATE TABLE {table} (\"Seq No\" {key}, \"Région\" {text}, what {text}, \"Body\" {text} NOT NULL, tenant_id int,
                 \"Trace,Id\" {text}, meta {text}, \"done?\" {flag})"
        )))
        .await;
    let variables = [
        ("RELAY_OUTBOX_TABLE", table.as_str()),
        ("RELAY_COLUMN_ID", "\"Seq No\""),
        ("RELAY_COLUMN_PAYLOAD", "\"Body\""),
        ("RELAY_COLUMN_SENT_AT", "\"done?\""),
        ("RELAY_COLUMN_ORDERING_KEY", "tenant_id"),
        ("RELAY_COLUMN_HEADERS", "tenant_id,\"Trace,Id\":traceparent"),
        ("RELAY_COLUMN_HEADERS_JSON", "meta"),
        ("RELAY_ROUTING_KEY", "shop.{Région}.{what}"),
        ("RELAY_TYPE", "{{{what}}}"),
    ];
    migrate(&outbox, &variables).await;
    let (code, out, _) = outbox.command(&["check"], &variables).await;
    assert!(out.contains("FAILED  indexes: no index of unsent rows"), "{out}");
    assert_eq!(code, Some(1), "{out}");
    // What it advises helps.
    let (_, advice) = out.split_once("make it: ").expect("advice");
    outbox.db.run(advice.lines().next().expect("a line")).await;
    let (code, out, _) = outbox.command(&["check"], &variables).await;
    assert_eq!(code, Some(0), "{out}");
    outbox
        .db
        .run(&quoted(
            &format!(
                "INSERT INTO {table} (\"Région\", what, \"Body\", tenant_id, \"Trace,Id\", meta) VALUES
                 ('EU', 'Made', 'one', 7, 'it''s', NULL), ('EU', 'Made', 'two', 7, NULL, '{{|tenant_id|: true}}'),
                 ('EU', 'Made', 'three', 7, '{TRACE_PARENT}', '{{|tracestate|: |{TRACE_STATE}|}}'),
                 ('EU', 'Made', 'four', 7, NULL, '{{|traceparent|: |{TRACE_PARENT}|, |tracestate|: |{TRACE_STATE}|}}')"
            )
            .replace('|', if database == "mariadb" { "\"\"" } else { "\"" }),
        ))
        .await;
    let _relay = with(&outbox, &variables).spawn();
    let consumer = Consumer::start(&outbox.amqp_url, "q");
    let received = consumer.wait_distinct(4, 30 * SECOND).await;
    assert_eq!(
        (received[0].text().as_str(), received[1].text().as_str()),
        ("one", "two")
    );
    let kind = received[0].properties.kind().as_ref().map(ToString::to_string);
    assert_eq!(kind.as_deref(), Some("{Made}"));
    let header = |message: &Received, name: &str| message.headers.inner().get(name).cloned();
    assert_eq!(header(&received[0], "tenant_id"), Some(AMQPValue::LongLongInt(7)));
    assert_eq!(
        header(&received[0], "traceparent"),
        Some(AMQPValue::LongString("it's".into()))
    );
    // The parent of the third row is from a column, that of the fourth from its own headers.
    for message in &received[2..] {
        for (name, value) in [("traceparent", TRACE_PARENT), ("tracestate", TRACE_STATE)] {
            assert_eq!(header(message, name), Some(AMQPValue::LongString(value.into())));
        }
    }
    assert_eq!(
        header(&received[1], "tenant_id"),
        Some(AMQPValue::Boolean(true)),
        "its own headers win"
    );
    assert_eq!(header(&received[1], "traceparent"), None);
    let unsent = quoted(&format!("SELECT count(*) FROM {table} WHERE NOT \"done?\""));
    until("all are marked", 20 * SECOND, async || {
        outbox.db.number(&unsent).await == 0
    })
    .await;
    assert_ne!(received[0].message_id, received[1].message_id);
}
