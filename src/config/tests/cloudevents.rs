//! What is set for CloudEvents.

use super::*;

#[test]
fn cloudevents_are_configured_by_templates() {
    let source = ("RELAY_CLOUDEVENTS_SOURCE", "https://shop.example.com/{tenant,x}");
    let binary = ("RELAY_MESSAGE_FORMAT", "cloudevents-binary");
    assert_eq!(config_with(&[]).cloudevents, None);
    let config = config_with(&[
        binary,
        source,
        ("RELAY_CLOUDEVENTS_TYPE", "order.v2"),
        ("RELAY_CLOUDEVENTS_EXTENSIONS", "tenantid={a,b=c}, kind={{x}}"),
    ]);
    let events = config.cloudevents.unwrap();
    assert_eq!((events.mode, events.prefix), (ContentMode::Binary, "cloudEvents_"));
    let names: Vec<_> = events
        .attributes
        .iter()
        .map(|attribute| attribute.name.as_str())
        .collect();
    assert_eq!(names, ["source", "type", "tenantid", "kind"]);
    let constants: Vec<_> = events.attributes.iter().filter_map(Attribute::constant).collect();
    assert_eq!(constants, ["order.v2", "{x}"]);
    // The others are made by the database, and the table is the relay's all the same.
    let mapping = config.outbox.mapping;
    assert!(mapping.is_default());
    let headers: Vec<_> = mapping
        .attributes
        .iter()
        .map(|template| template.header.as_str())
        .collect();
    assert_eq!(headers, ["cloudEvents_source", "cloudEvents_tenantid"]);
}

#[test]
fn cloudevents_that_cannot_be_are_refused_at_the_start() {
    let source = ("RELAY_CLOUDEVENTS_SOURCE", "/shop");
    let problem = |name, value: &str| {
        let binary = ("RELAY_MESSAGE_FORMAT", "cloudevents-binary");
        let given = [binary, source, (name, value)];
        let given = if name == source.0 { &given[..1] } else { &given[..] };
        let given = [given, &[(name, value)]].concat();
        load_with(&given).expect_err(value).to_string()
    };
    for (name, value, words) in [
        ("RELAY_CLOUDEVENTS_SOURCE", "", "is required for CloudEvents"),
        ("RELAY_CLOUDEVENTS_SOURCE", "my shop", "is no URI"),
        (
            "RELAY_CLOUDEVENTS_SOURCE",
            "https://u:pw@shop/",
            "without user, password",
        ),
        ("RELAY_CLOUDEVENTS_SOURCE", "{a", "single brace"),
        ("RELAY_CLOUDEVENTS_DATASCHEMA", "v1.json", "no absolute URI"),
        ("RELAY_CLOUDEVENTS_PREFIX", "ce_", "`ce-`"),
        ("RELAY_CLOUDEVENTS_EXTENSIONS", "tenantid", "name=template"),
        ("RELAY_CLOUDEVENTS_EXTENSIONS", "tenant_id={a}", "lower-case letters"),
        ("RELAY_CLOUDEVENTS_EXTENSIONS", "abcdefghijklmnopqrstu={a}", "1 to 20"),
        ("RELAY_CLOUDEVENTS_EXTENSIONS", "id={a}", "it is the message_id"),
        (
            "RELAY_CLOUDEVENTS_EXTENSIONS",
            "subject={a}",
            "RELAY_CLOUDEVENTS_SUBJECT",
        ),
        ("RELAY_CLOUDEVENTS_EXTENSIONS", "a={x},a={y}", "twice"),
        ("RELAY_CLOUDEVENTS_EXTENSIONS", "a=", "is empty"),
    ] {
        let problem = problem(name, value);
        assert!(problem.starts_with(name) && problem.contains(words), "{problem}");
        assert!(!problem.contains("pw"), "{problem}");
    }
    let warnings = load_with(&[source]).unwrap().warnings;
    assert_eq!(
        warnings,
        ["RELAY_CLOUDEVENTS_SOURCE has no effect while RELAY_MESSAGE_FORMAT is plain"]
    );
}
