//! Tables that are well known: a preset is a set of variables beneath those that are set by hand.

use super::{findings::shown, mapping::Field, parse::either};

/// What a preset sets, beneath everything that is set by hand: variables with their values.
pub(super) struct Preset {
    pub(super) name: &'static str,
    pub(super) variables: &'static [(&'static str, &'static str)],
}

/// <https://debezium.io/documentation/reference/stable/transformations/outbox-event-router.html> and
/// <https://watermill.io/pubsubs/sql/>.
pub(super) const PRESETS: &[Preset] = &[
    Preset {
        name: "debezium",
        variables: &[
            ("RELAY_OUTBOX_ON_SENT", "delete"),
            ("RELAY_COLUMN_ID", "id"),
            ("RELAY_COLUMN_MESSAGE_ID", "id"),
            ("RELAY_COLUMN_ORDERING_KEY", "aggregateid"),
            ("RELAY_COLUMN_TYPE", "type"),
            ("RELAY_COLUMN_PAYLOAD", "payload"),
            ("RELAY_ROUTING_KEY", "{aggregatetype}.{type}"),
        ],
    },
    Preset {
        name: "watermill",
        variables: &[
            ("RELAY_OUTBOX_ON_SENT", "delete"),
            ("RELAY_COLUMN_ID", "offset"),
            ("RELAY_COLUMN_MESSAGE_ID", "uuid"),
            ("RELAY_COLUMN_HEADERS_JSON", "metadata"),
            ("RELAY_COLUMN_PAYLOAD", "payload"),
        ],
    },
];

/// The preset of this name.
pub(super) fn preset(name: &str) -> Result<&'static Preset, String> {
    PRESETS.iter().find(|preset| preset.name == name).ok_or_else(|| {
        let names: Vec<_> = PRESETS.iter().map(|preset| format!("`{}`", preset.name)).collect();
        format!("must be {}, but {}", either(&names), shown(name))
    })
}

/// The variable that says the same as this one in another way, and is set in its place.
pub(super) fn counterpart(variable: &str) -> Option<&'static str> {
    Field::ALL.into_iter().find_map(|field| {
        let template = field.template_variable()?;
        match variable {
            name if name == template => Some(field.variable()),
            name if name == field.variable() => Some(template),
            _ => None,
        }
    })
}
