//! Templates, lists of columns and names of tables mean what they say, or are refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outbox_relay::config::{self, Config, Field, Origin, Piece, TableName};
use outbox_relay_fuzz::required;

/// A line for each.
const VARIABLES: [&str; 6] = [
    "RELAY_ROUTING_KEY",
    "RELAY_COLUMN_HEADERS",
    "RELAY_CLOUDEVENTS_SOURCE",
    "RELAY_CLOUDEVENTS_EXTENSIONS",
    "RELAY_OUTBOX_TABLE",
    "RELAY_COLUMN_PAYLOAD",
];

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let lines: Vec<_> = VARIABLES
        .into_iter()
        .zip(text.split('\n'))
        .filter(|(_, line)| !line.is_empty())
        .collect();
    let Some(config) = load(&lines) else { return };
    if let Some(Origin::Template(pieces)) = config.outbox.mapping.origin(Field::RoutingKey) {
        let again = load(&[("RELAY_ROUTING_KEY", &written(pieces))]).expect("it was a template before");
        assert_eq!(
            again.outbox.mapping.origin(Field::RoutingKey),
            config.outbox.mapping.origin(Field::RoutingKey)
        );
    }
    for attribute in config.cloudevents.iter().flat_map(|events| &events.attributes) {
        assert!(
            attribute
                .name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        );
        let value = written(&attribute.value);
        if attribute.name == "source" {
            let again = load(&[("RELAY_CLOUDEVENTS_SOURCE", &value)]).and_then(|config| config.cloudevents);
            assert_eq!(
                again.expect("it was a template before").attributes[0].value,
                attribute.value
            );
        }
    }
    for (_, header) in &config.outbox.mapping.headers {
        assert!((1..=255).contains(&header.len()));
    }
    let table = &config.outbox.table;
    let again: TableName = table.to_string().parse().expect("a table's name");
    assert_eq!(again, *table);
});

fn load(lines: &[(&str, &str)]) -> Option<Config> {
    let source = [
        ("RELAY_MESSAGE_FORMAT", "cloudevents-binary"),
        ("RELAY_CLOUDEVENTS_SOURCE", "/shop"),
    ];
    let all = required().into_iter().chain(source).chain(lines.iter().copied());
    config::load(all.map(|(name, value)| (name.to_owned(), value.to_owned())))
        .ok()
        .map(|loaded| loaded.config)
}

/// The pieces as a template.
fn written(pieces: &[Piece]) -> String {
    let piece = |piece: &Piece| match piece {
        Piece::Text(text) => text.replace('{', "{{").replace('}', "}}"),
        Piece::Column(name) => format!("{{{name}}}"),
    };
    pieces.iter().map(piece).collect()
}
