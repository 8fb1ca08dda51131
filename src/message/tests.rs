use super::*;

pub(super) fn row() -> OutboxRow {
    OutboxRow {
        id: RowId(1),
        message_id: Uuid::nil().into(),
        exchange: None,
        routing_key: "orders.placed".to_owned(),
        ordering_key: None,
        kind: None,
        content_type: "application/json".to_owned(),
        headers: "{}".to_owned(),
        properties: "{}".to_owned(),
        payload: Payload::Loaded(b"{\"id\": 1}".to_vec()),
        created_at: None,
        age: Duration::ZERO,
        due_in: Duration::ZERO,
        attempts: 0,
    }
}

pub(super) fn rules() -> MessageRules {
    MessageRules {
        default_exchange: "events".to_owned(),
        max_body_bytes: 100,
        cloudevents: None,
    }
}

fn reason(change: impl FnOnce(&mut OutboxRow)) -> String {
    let mut row = row();
    change(&mut row);
    Message::from_row(row, &rules())
        .expect_err("the row is bad")
        .to_string()
}

#[test]
fn a_plain_row_takes_the_default_exchange_and_keeps_its_bytes() {
    let message = Message::from_row(row(), &rules()).expect("valid");
    assert_eq!(message.exchange, "events");
    assert_eq!(message.body, b"{\"id\": 1}");
}

#[test]
fn what_a_broker_would_refuse_is_refused_here_with_a_reason() {
    let long = "k".repeat(256);
    assert!(reason(|r| r.routing_key.clone_from(&long)).contains("routing_key has 256 bytes"));
    assert!(reason(|r| r.exchange = Some(long.clone())).contains("exchange has 256 bytes"));
    assert!(reason(|r| r.headers = "[1]".to_owned()).contains("headers must be a JSON object, it is an array"));
    assert!(reason(|r| r.headers = "{oops".to_owned()).contains("headers is not JSON"));
    assert!(reason(|r| r.headers = format!("{{\"h\":\"{}\"}}", "x".repeat(200_000))).contains("one AMQP frame"));
    assert!(reason(|r| r.headers = "{\"n\":9223372036854775808}".to_owned()).contains("above 2^63"));
    assert!(reason(|r| r.properties = "{\"expiration\":\"soon\"}".to_owned()).contains("expiration must be"));
    assert!(reason(|r| r.properties = "{\"priority\":256}".to_owned()).contains("0 to 255"));
    assert!(reason(|r| r.properties = "{\"colour\":1}".to_owned()).contains("\"colour\" is unknown"));
    assert!(reason(|r| r.payload = Payload::Left(101)).contains("101 bytes, the limit is 100"));
}

#[test]
fn properties_are_read_in_both_spellings_of_a_number() {
    let read = |text: &str| properties(text).expect("valid");
    assert_eq!(read("{\"expiration\":60000}").expiration, Some(60_000));
    assert_eq!(read("{\"expiration\":\"60000\"}").expiration, Some(60_000));
    assert_eq!(read("{\"priority\":9,\"app_id\":null}").priority, Some(9));
}
