//! Headers that the relay adds, beside those that the configuration makes of other things.

use super::*;

const DEDUP: &str = "RELAY_AMQP_DEDUP_HEADER";
const REPEAT: &str = "RELAY_MESSAGE_REPEAT_HEADER";

/// The only problem; it must be one of `name`.
fn problem(pairs: &[(&str, &str)], name: &str) -> String {
    let errors = load_with(pairs).expect_err(name);
    assert_eq!(errors.problems().len(), 1, "{errors}");
    assert_eq!(errors.problems()[0].variable, name);
    errors.to_string()
}

#[test]
fn headers_of_the_relay_have_names_of_their_own() {
    let own = config_with(&[(DEDUP, "x-deduplication-header"), (REPEAT, "outbox-repeat")])
        .message
        .own_headers;
    assert_eq!(own.dedup.as_deref(), Some("x-deduplication-header"));
    assert_eq!(own.repeat.as_deref(), Some("outbox-repeat"));

    let twice = problem(&[(DEDUP, "x"), (REPEAT, "x")], REPEAT);
    assert!(twice.contains("is the header of RELAY_AMQP_DEDUP_HEADER"), "{twice}");
    for variable in [DEDUP, REPEAT] {
        let column = problem(
            &[(variable, "tenant"), ("RELAY_COLUMN_HEADERS", "id,t:tenant")],
            variable,
        );
        assert!(column.contains("is a header of RELAY_COLUMN_HEADERS"), "{column}");
        let reserved = problem(&[(variable, "x-death")], variable);
        assert!(reserved.contains("is a reserved header"), "{reserved}");
        problem(&[(variable, &"x".repeat(256))], variable);
        problem(&[(variable, " ")], variable);
        problem(&[(variable, "traceparent")], variable);
    }
}

#[test]
fn headers_of_the_relay_are_no_attributes_of_events() {
    for (format, prefix, name) in [
        ("cloudevents-binary", "cloudEvents_", "cloudEvents_subject"),
        ("cloudevents-binary", "cloudEvents:", "cloudEvents:any"),
        ("cloudevents-structured", "ce-", "ce-id"),
    ] {
        let events = [
            ("RELAY_MESSAGE_FORMAT", format),
            ("RELAY_CLOUDEVENTS_SOURCE", "/shop"),
            ("RELAY_CLOUDEVENTS_PREFIX", prefix),
        ];
        for variable in [DEDUP, REPEAT] {
            let problem = problem(&[&events[..], &[(variable, name)]].concat(), variable);
            assert!(problem.contains(&format!("begins with {prefix}")), "{problem}");
        }
        // Another prefix than the one in use is a name like any other.
        config_with(&[&events[..], &[(DEDUP, "cloudevents-id")]].concat());
    }
    config_with(&[(DEDUP, "cloudEvents_id")]);
}

#[test]
fn columns_do_not_become_reserved_headers_by_oversight() {
    let columns = ("RELAY_COLUMN_HEADERS", "copies:CC");
    let problem = problem(&[columns], "RELAY_COLUMN_HEADERS");
    assert!(
        problem.contains("makes the reserved header CC of the column copies"),
        "{problem}"
    );
    config_with(&[columns, ("RELAY_MESSAGE_ALLOW_HEADERS", "CC")]);
}
