//! Finds the columns that are asked for, and says what is wrong with them.

use super::{Header, Layout, Need, Part, Types, Value};
use crate::config::{ColumnName, Field, HEADER_COLUMNS, Mapping, OnSent, Origin, Piece, TableName};
use crate::store::StoreError;
use crate::store::columns::{Column, awaited};

/// Finds columns, and notes what is wrong with them.
pub(super) struct Search<'a> {
    mapping: &'a Mapping,
    columns: &'a [Column],
    table: String,
    types: &'a dyn Types,
    absent: Vec<String>,
    advice: Vec<String>,
    pub(super) wrong: Vec<String>,
}

impl<'a> Search<'a> {
    pub(super) fn new(mapping: &'a Mapping, columns: &'a [Column], table: &TableName, types: &'a dyn Types) -> Self {
        Self {
            mapping,
            columns,
            table: types.table(table),
            types,
            absent: Vec::new(),
            advice: Vec::new(),
            wrong: Vec::new(),
        }
    }

    pub(super) fn all_there(&self, table: &TableName) -> Result<(), StoreError> {
        if self.absent.is_empty() {
            return Ok(());
        }
        let names: Vec<_> = self.columns.iter().map(|column| column.name.as_str()).collect();
        let (absent, names) = (self.absent.join("; "), names.join(", "));
        Err(awaited(&format!("table {table}: {absent}; its columns are {names}")))
    }

    pub(super) fn headers(&mut self) -> Vec<Header> {
        let mapping = self.mapping;
        let column = |(name, header): &(ColumnName, String)| {
            let value = self.named(name, HEADER_COLUMNS).map(Value::Column)?;
            Some((header.clone(), value))
        };
        let mut headers: Vec<_> = mapping.headers.iter().filter_map(column).collect();
        for template in &mapping.attributes {
            headers.push((
                template.header.clone(),
                self.template(&template.value, template.variable),
            ));
        }
        headers
    }

    fn template(&mut self, pieces: &[Piece], variable: &str) -> Value {
        let part = |piece: &Piece| match piece {
            Piece::Text(text) => Some(Part::Text(text.clone())),
            Piece::Column(name) => self.named(name, variable).map(Part::Column),
        };
        Value::Template(pieces.iter().filter_map(part).collect())
    }

    pub(super) fn layout(&mut self, on_sent: OnSent) -> Option<Layout> {
        let key = self.key();
        let numbered = key.as_ref().is_some_and(|key| !self.types.is_integer(key));
        let contents = Field::ALL
            .into_iter()
            .filter(|field| *field != Field::Id && *field != Field::SentAt && !Field::BOOKKEEPING.contains(field));
        let mut values = Vec::new();
        for field in contents {
            let mut value = self.value(field);
            if field == Field::MessageId && numbered && self.mapping.origin(field).is_none() && value == Value::Nowhere
            {
                // What names the row in the table names its message, as long as it is no other row's later.
                let names = key.clone().filter(|key| !self.types.is_given_again(key));
                value = names.map_or(Value::Nowhere, Value::Column);
            }
            values.push((field, value));
        }
        self.warn_of_made_ids(&values);
        let headers = self.headers();
        let sent = self.sent(on_sent);
        let bookkeeping = self.bookkeeping(numbered);
        let by_place = numbered && key.as_ref().is_some_and(|key| !key.unique);
        Some(Layout {
            key: key?,
            numbered,
            by_place,
            advice: std::mem::take(&mut self.advice),
            values,
            headers,
            sent_is_flag: sent.as_ref().is_some_and(|sent| self.types.is_flag(sent)),
            sent,
            bookkeeping,
            null_payload_is_empty: self.mapping.null_payload_is_empty,
        })
    }

    /// What tells rows of this table apart says nothing of rows elsewhere. Whoever writes `-` knows.
    fn warn_of_made_ids(&mut self, values: &[(Field, Value)]) {
        let of = |field| values.iter().find(|(other, _)| *other == field).map(|(_, value)| value);
        if of(Field::MessageId) != Some(&Value::Nowhere) || self.mapping.origin(Field::MessageId).is_some() {
            return;
        }
        let (made, like) = match of(Field::CreatedAt) {
            Some(Value::Nowhere) => ("", ""),
            _ => (" and the second it was created in", " made in the same second"),
        };
        let add = self.types.add_message_id(&self.table).map(|add| format!(", or {add}"));
        self.advice.push(format!(
            "rows have no message id: it is made of the table's name, the row's id{made}, so that a row of this id{like} in another \
             database, or under an id that is given again (TRUNCATE), has the same, and consumers drop it as a duplicate: name a \
             column of ids in RELAY_COLUMN_MESSAGE_ID (`-`: it is known){}",
            add.unwrap_or_default()
        ));
    }

    fn key(&mut self) -> Option<Column> {
        let Value::Column(key) = self.value(Field::Id) else {
            return None;
        };
        let (variable, table) = (Field::Id.variable(), &self.table);
        let unique = self.types.unique_index(table, &key);
        if key.nullable {
            let mend = self.types.alter_nullable(table, &key, false).unwrap_or_else(|| {
                format!(
                    "SQLite changes no column, make {table} anew with {} NOT NULL",
                    key.quoted()
                )
            });
            self.wrong.push(format!(
                "{} ({variable}) may be null, and such a row would never be sent: {mend}",
                key.name
            ));
        } else if !key.unique && key.counted {
            self.advice.push(format!(
                "nothing keeps two rows from having the same {} ({variable}), of which one would be taken for both: as long as \
                 the application leaves the counting to the database it is good; this makes sure: {unique}",
                key.name
            ));
        } else if !key.unique && !self.types.is_integer(&key) && self.types.knows_places() {
            self.advice.push(format!(
                "nothing keeps two rows from having the same {} ({variable}): both are published, under one message id, of which \
                 consumers may drop the second; and rows are known by their place in the table, so that what moves them (UPDATE, \
                 VACUUM FULL) sends those that wait again; this mends both: {unique}",
                key.name
            ));
        } else if !key.unique {
            self.wrong.push(format!(
                "{} ({variable}) may be the same in several rows, of which one would be taken for all: {unique}",
                key.name
            ));
        }
        if !self.types.is_integer(&key)
            && let Some(most) = self.types.longest_key(&key)
        {
            self.wrong.push(format!(
                "{} ({variable}) can be longer than the {most} that the table of row numbers takes: name a column of whole numbers, \
                 or {}",
                key.name,
                self.types.shorten(table, &key, most)
            ));
        }
        Some(key)
    }

    fn value(&mut self, field: Field) -> Value {
        match self.mapping.origin(field) {
            Some(Origin::Nowhere) => Value::Nowhere,
            Some(Origin::Column(name)) => self.fitting(name, field).map_or(Value::Nowhere, Value::Column),
            Some(Origin::Template(pieces)) => {
                let variable = self.mapping.variable(field);
                self.template(pieces, variable)
            }
            None => match self.find(field.name()).cloned() {
                Some(column) => {
                    self.check_type(&column, field);
                    Value::Column(column)
                }
                None => {
                    self.must_be_there(field);
                    Value::Nowhere
                }
            },
        }
    }

    fn must_be_there(&mut self, field: Field) {
        let advice = match field {
            Field::Id => match self.types.counter() {
                Some(counter) => format!(
                    "name it in {}, or ALTER TABLE {} ADD COLUMN id {counter}",
                    field.variable(),
                    self.table
                ),
                None => format!(
                    "name it in {}; SQLite adds no such column to a table, which would have to be made anew with id INTEGER \
                     PRIMARY KEY AUTOINCREMENT",
                    field.variable()
                ),
            },
            Field::Payload => format!("name it in {}", field.variable()),
            Field::RoutingKey => {
                "name it in RELAY_COLUMN_ROUTING_KEY, or make it of others with RELAY_ROUTING_KEY".to_owned()
            }
            _ => return,
        };
        self.absent
            .push(format!("there is no column {}: {advice}", field.name()));
    }

    fn sent(&mut self, on_sent: OnSent) -> Option<Column> {
        let Value::Column(sent) = self.value(Field::SentAt) else {
            // A variable that names a column which is not there has been noted already.
            let named = matches!(self.mapping.origin(Field::SentAt), Some(Origin::Column(_)));
            if on_sent == OnSent::Mark && !named {
                self.wrong.push(format!(
                    "there is no column to mark sent rows in: name one in RELAY_COLUMN_SENT_AT, set RELAY_OUTBOX_ON_SENT=delete, \
                     or ALTER TABLE {} ADD COLUMN sent_at {}",
                    self.table,
                    self.types.time()
                ));
            }
            return None;
        };
        if !sent.nullable && !self.types.is_flag(&sent) {
            let (name, variable) = (&sent.name, Field::SentAt.variable());
            let mend = self.types.alter_nullable(&self.table, &sent, true);
            let mend = mend.map(|mend| format!(", or {mend}")).unwrap_or_default();
            self.wrong.push(format!(
                "{name} ({variable}) is NOT NULL, so that no row would ever be unsent: name another column, or `-` for none{mend}"
            ));
        }
        Some(sent)
    }

    /// All four or none: a table that has `attempts` only means something else by it.
    fn bookkeeping(&mut self, numbered: bool) -> Option<[Column; 4]> {
        let given = |field: &Field| matches!(self.mapping.origin(*field), Some(Origin::Column(_)));
        let named = Field::BOOKKEEPING.iter().any(given);
        let variables = Field::BOOKKEEPING.map(Field::variable).join(", ");
        if numbered {
            if named {
                self.wrong.push(format!(
                    "refusals of rows that the relay numbers itself are in its own table: leave out {variables}"
                ));
            }
            return None;
        }
        let here = |field: &Field| match self.mapping.origin(*field) {
            Some(Origin::Column(_)) => true,
            Some(_) => false,
            None => self.find(field.name()).is_some(),
        };
        if !Field::BOOKKEEPING.iter().all(here) {
            if named {
                self.wrong.push(format!(
                    "of {variables} only some have a column: name all of them, or none"
                ));
            }
            return None;
        }
        let columns = Field::BOOKKEEPING.map(|field| match self.value(field) {
            Value::Column(column) => Some(column),
            _ => None,
        });
        match columns {
            [Some(attempts), Some(next), Some(error), Some(dead)] => Some([attempts, next, error, dead]),
            _ => None,
        }
    }

    fn fitting(&mut self, name: &ColumnName, field: Field) -> Option<Column> {
        let column = self.named(name, field.variable())?;
        self.check_type(&column, field);
        Some(column)
    }

    fn check_type(&mut self, column: &Column, field: Field) {
        let allowed = self.types.allowed(Need::of(field));
        if field != Field::Id && !allowed.is_empty() && !allowed.contains(&column.kind.as_str()) {
            // Which the body cannot do without.
            let or_none = if field == Field::Payload {
                ""
            } else {
                ", or `-` for none"
            };
            self.wrong.push(format!(
                "{} is {}, which is no {}: allowed are {}; name another column in {}{or_none}",
                column.name,
                column.kind,
                field.name(),
                allowed.join(", "),
                field.variable()
            ));
        }
    }

    fn named(&mut self, name: &ColumnName, variable: &str) -> Option<Column> {
        let found = self.find(name.as_str()).cloned();
        if found.is_none() {
            let score = |column: &&Column| strsim::normalized_damerau_levenshtein(&column.name, name.as_str());
            let nearest = self.columns.iter().max_by(|a, b| score(a).total_cmp(&score(b)));
            let hint = match nearest {
                Some(nearest) if score(&nearest) > 0.5 => format!(" (did you mean {}?)", nearest.name),
                _ => String::new(),
            };
            self.absent
                .push(format!("{variable} names the column {name}, which is not there{hint}"));
        }
        found
    }

    /// As written; in databases that do not tell cases apart, in any case.
    fn find(&self, name: &str) -> Option<&Column> {
        let exactly = self.columns.iter().find(|column| column.name == name);
        exactly.or_else(|| {
            let mut alike = self
                .columns
                .iter()
                .filter(|column| column.name.eq_ignore_ascii_case(name));
            alike.next().filter(|_| self.types.ignores_case())
        })
    }
}
