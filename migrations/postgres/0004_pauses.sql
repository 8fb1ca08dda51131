-- What people have paused: relays publish nothing of it. A row of its own for the whole relay, and one for each exchange. Times
-- are seconds since 1970 by this server's clock. The table is shared by all outboxes of the schema.
CREATE TABLE IF NOT EXISTS {pauses} (
    outbox    text             NOT NULL,
    -- everything, or exchange.
    scope     text             NOT NULL,
    -- Empty for the default exchange, and for everything.
    exchange  text             NOT NULL,
    paused_by text             NOT NULL,
    reason    text             NOT NULL,
    paused_at double precision NOT NULL,
    PRIMARY KEY (outbox, scope, exchange)
);

COMMENT ON TABLE {pauses} IS 'Written by outbox-relay: what people have paused';
