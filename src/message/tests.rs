use super::*;

pub(crate) fn row() -> OutboxRow {
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
        not_utf8: None,
    }
}

pub(crate) fn rules() -> MessageRules {
    MessageRules {
        default_exchange: "events".to_owned(),
        max_body_bytes: 100,
        ..MessageRules::default()
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
    assert_eq!(message.body[..], *b"{\"id\": 1}");
}

#[test]
fn what_a_broker_would_refuse_is_refused_here_with_a_reason() {
    let long = "k".repeat(256);
    assert!(reason(|r| r.routing_key.clone_from(&long)).contains("routing_key has 256 bytes"));
    assert!(reason(|r| r.exchange = Some(long.clone())).contains("exchange has 256 bytes"));
    assert!(reason(|r| r.headers = "[1]".to_owned()).contains("headers must be a JSON object, it is an array"));
    assert!(reason(|r| r.headers = "{oops".to_owned()).contains("headers is not JSON"));
    assert!(reason(|r| r.headers = format!("{{\"h\":\"{}\"}}", "x".repeat(200_000))).contains("one AMQP frame"));
    assert!(reason(|r| r.headers = "{\"n\":9223372036854775808}".to_owned()).contains("beyond 64 bits"));
    assert!(reason(|r| r.properties = "{\"expiration\":\"soon\"}".to_owned()).contains("expiration must be"));
    assert!(reason(|r| r.properties = "{\"priority\":256}".to_owned()).contains("0 to 255"));
    assert!(reason(|r| r.properties = "{\"colour\":1}".to_owned()).contains("\"colour\" is unknown"));
    assert!(reason(|r| r.payload = Payload::Left(101)).contains("101 bytes, the limit is 100"));
}

#[test]
fn properties_are_read_in_both_spellings_of_a_number() {
    let read = |text: &str| properties::read(text).expect("valid");
    assert_eq!(read("{\"expiration\":60000}").expiration, Some(60_000));
    assert_eq!(read("{\"expiration\":\"60000\"}").expiration, Some(60_000));
    assert_eq!(read("{\"priority\":9,\"app_id\":null}").priority, Some(9));
}

fn read_headers(text: &str) -> Headers {
    headers::read(text, &rules()).expect(text)
}

#[test]
fn numbers_of_headers_are_what_was_written_or_refused() {
    let one = |number: &str| read_headers(&format!("{{\"n\":{number}}}"))["n"].clone();
    assert_eq!(one("9223372036854775807"), HeaderValue::Integer(i64::MAX));
    assert_eq!(one("-9223372036854775808"), HeaderValue::Integer(i64::MIN));
    assert_eq!(one("1.0"), HeaderValue::Double(1.0));
    assert_eq!(
        one("2.2250738585072011e-308"),
        HeaderValue::Double(2.225_073_858_507_201e-308)
    );
    for bad in [
        "9223372036854775808",
        "-9223372036854775809",
        "100000000000000000000000",
        "1e999",
    ] {
        assert!(
            reason(|r| r.headers = format!("{{\"n\":{bad}}}")).contains("write it as a string"),
            "{bad}"
        );
    }
    for bad in ["NaN", "Infinity", "01", "1.", "0x1"] {
        assert!(
            reason(|r| r.headers = format!("{{\"n\":{bad}}}")).contains("is not JSON"),
            "{bad}"
        );
    }
}

#[test]
fn timestamps_and_decimals_have_a_form_of_their_own() {
    let one = |value: &str| read_headers(&format!("{{\"v\":{value}}}"))["v"].clone();
    assert_eq!(
        one("{\"$timestamp\":1700000000}"),
        HeaderValue::Timestamp(1_700_000_000)
    );
    let decimal = |scale, unscaled| HeaderValue::Decimal { scale, unscaled };
    assert_eq!(one("{\"$decimal\":\"-12.34\"}"), decimal(2, -1_234));
    assert_eq!(one("{\"$decimal\":\"5\"}"), decimal(0, 5));
    assert_eq!(one("{\"$decimal\":\"-2147483648\"}"), decimal(0, i32::MIN));
    // With others beside it, it is a member like any other.
    assert!(matches!(one("{\"$timestamp\":1,\"b\":2}"), HeaderValue::Table(table) if table.len() == 2));
    for bad in ["-1", "253402300800", "1.5", "\"now\"", "null"] {
        assert!(
            reason(|r| r.headers = format!("{{\"v\":{{\"$timestamp\":{bad}}}}}")).contains("whole seconds"),
            "{bad}"
        );
    }
    for bad in ["", "1.", ".5", "+1", "--1", "1e2", "2147483648", "1.2.3", "0x1", "1 "] {
        assert!(
            reason(|r| r.headers = format!("{{\"v\":{{\"$decimal\":\"{bad}\"}}}}")).contains("$decimal"),
            "{bad}"
        );
    }
}

#[test]
fn of_members_with_one_name_the_last_counts_and_depth_has_a_bound() {
    assert_eq!(
        read_headers("{\"a\":1,\"a\":\"2\"}")["a"],
        HeaderValue::Text("2".to_owned())
    );
    let deep = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
    read_headers(&deep(100));
    assert!(reason(|r| r.headers = deep(100_000)).contains("recursion limit"));
}

#[test]
fn reserved_headers_are_refused_with_a_reason_unless_they_are_allowed() {
    for name in [
        "CC",
        "x-death",
        "x-first-death-queue",
        "x-delivery-count",
        "x-mqtt-dup",
        "x-shovelled-timestamp",
        "x-delay",
    ] {
        let text = format!("{{\"{name}\":[\"q\"]}}");
        let said = reason(|r| r.headers.clone_from(&text));
        assert!(
            said.contains("is reserved") && said.contains("RELAY_MESSAGE_ALLOW_HEADERS"),
            "{said}"
        );
        let allowing = MessageRules {
            allowed_headers: vec![name.to_owned()],
            ..rules()
        };
        headers::read(&text, &allowing).expect(name);
    }
    // Clients set these on purpose.
    read_headers("{\"x-stream-filter-value\":\"eu\",\"cc\":1,\"inner\":{\"CC\":1}}");
    let allowing = MessageRules {
        allowed_headers: vec!["CC".to_owned()],
        ..rules()
    };
    for bad in ["\"q\"", "[1]", "null"] {
        headers::read(&format!("{{\"CC\":{bad}}}"), &allowing).expect_err("RabbitMQ would close the channel");
    }
}

#[test]
fn headers_that_the_relay_writes_are_not_the_rows() {
    let own = MessageRules {
        own_headers: OwnHeaders {
            dedup: Some("x-deduplication-header".to_owned()),
            repeat: Some("outbox-repeat".to_owned()),
        },
        ..rules()
    };
    headers::read("{\"x-deduplication-header\":\"a\"}", &own).expect_err("it is the relay's");
    headers::read("{\"outbox-repeat\":true}", &own).expect_err("it is the relay's");
    read_headers("{\"x-deduplication-header\":\"a\"}");
}

#[test]
fn every_property_has_its_place() {
    assert!(properties::read("{\"delivery_mode\":1}").expect("valid").transient);
    assert!(!properties::read("{\"delivery_mode\":\"2\"}").expect("valid").transient);
    let said = |text: &str| properties::read(text).expect_err(text).to_string();
    assert!(said("{\"delivery_mode\":3}").contains("from 1 to 2"));
    assert!(said("{\"timestamp\":1}").contains("by the column created_at"));
    assert!(said("{\"cluster_id\":\"x\"}").contains("reserved"));
    assert!(said("{\"reply_to\":\"amq.rabbitmq.reply-to\"}").contains("awaits no answers"));
    assert!(said(&format!("{{\"{}\":1}}", "x".repeat(100_000))).len() < 300);
}

fn with_body(body: Vec<u8>, own: Option<&str>) -> Arc<Message> {
    let mut message = Message::from_row(row(), &rules()).expect("valid");
    message.body = body.into();
    message.properties.content_encoding = own.map(str::to_owned);
    Arc::new(message)
}

#[test]
fn every_copy_is_compressed_to_the_same_bytes_and_only_where_it_helps() {
    use std::io::Read as _;
    let large = with_body(b"{\"order\":1}".repeat(1_000), None);
    for coding in [Coding::Gzip, Coding::Zstd] {
        let compression = Compression {
            coding,
            min_bytes: 1_000,
        };
        let [first, again] = [&large, &large].map(|message| compression.apply(std::slice::from_ref(message)).remove(0));
        assert_eq!(first.body, again.body);
        assert_eq!(first.properties.content_encoding.as_deref(), Some(coding.name()));
        assert!(first.body.len() < large.body.len() / 4);
        let mut plain = Vec::new();
        match coding {
            Coding::Gzip => flate2::read::GzDecoder::new(&*first.body)
                .read_to_end(&mut plain)
                .map(drop),
            Coding::Zstd => zstd::stream::copy_decode(&*first.body, &mut plain),
        }
        .expect("it can be decompressed");
        assert_eq!(plain, large.body);
        let mut rng = fastrand::Rng::with_seed(1);
        let left = [
            with_body(large.body.to_vec(), Some("br")),
            with_body(vec![b'x'; 999], None),
            with_body((0..5_000).map(|_| rng.u8(..)).collect(), None),
            with_body(Vec::new(), None),
        ];
        for (before, after) in left.iter().zip(compression.apply(&left)) {
            assert!(Arc::ptr_eq(before, &after));
        }
    }
}
