-- The outbox. The application inserts into it in the same transaction as its business change; the relay reads it,
-- publishes, and marks. Every statement can be run again.
--
-- AUTOINCREMENT: without it the highest id is given again once its row is deleted, and a reader that is past it would
-- take the new row for the old one.
CREATE TABLE IF NOT EXISTS {outbox} (
    id              INTEGER PRIMARY KEY AUTOINCREMENT,
    -- A random (version 4) UUID, with its version and variant in the right places.
    message_id      TEXT    NOT NULL DEFAULT (
        lower(hex(randomblob(4))) || '-' || lower(hex(randomblob(2))) || '-4' ||
        substr(lower(hex(randomblob(2))), 2) || '-' || substr('89ab', 1 + (random() & 3), 1) ||
        substr(lower(hex(randomblob(2))), 2) || '-' || lower(hex(randomblob(6)))
    ),
    exchange        TEXT,
    routing_key     TEXT    NOT NULL,
    ordering_key    TEXT,
    type            TEXT,
    content_type    TEXT    NOT NULL DEFAULT 'application/json',
    headers         TEXT    NOT NULL DEFAULT '{}',
    properties      TEXT    NOT NULL DEFAULT '{}',
    -- No type: text stays text, and a blob stays a blob.
    payload                 NOT NULL,
    -- Times: ISO 8601 in UTC, or seconds since 1970.
    created_at      TEXT    NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    available_at    TEXT,
    attempts        INTEGER NOT NULL DEFAULT 0,
    next_attempt_at TEXT,
    last_error      TEXT,
    sent_at         TEXT,
    dead_at         TEXT
);

-- What is still to be sent, in order: small however many sent rows are kept.
CREATE INDEX IF NOT EXISTS {unsent_index} ON {outbox} (id) WHERE sent_at IS NULL AND dead_at IS NULL;

-- Dead letters: few, and looked at by id.
CREATE INDEX IF NOT EXISTS {dead_index} ON {outbox} (id) WHERE dead_at IS NOT NULL;
