-- What people have paused: relays publish nothing of it. A row of its own for the whole relay, and one for each exchange. Times
-- are seconds since 1970 by this server's clock. The table is shared by all outboxes of the file.
CREATE TABLE IF NOT EXISTS {pauses} (
    outbox    TEXT NOT NULL,
    -- everything, or exchange.
    scope     TEXT NOT NULL,
    -- Empty for the default exchange, and for everything.
    exchange  TEXT NOT NULL,
    paused_by TEXT NOT NULL,
    reason    TEXT NOT NULL,
    paused_at REAL NOT NULL,
    PRIMARY KEY (outbox, scope, exchange)
) WITHOUT ROWID;
