-- What people have paused: relays publish nothing of it. A row of its own for the whole relay, and one for each exchange. Times
-- are seconds since 1970 by this server's clock. The table is shared by all outboxes of the database.
CREATE TABLE IF NOT EXISTS {pauses} (
    outbox    varchar(63)   NOT NULL,
    -- everything, or exchange.
    scope     varchar(10)   NOT NULL,
    -- Empty for the default exchange, and for everything. Bytes: a collation would take different names for the same.
    exchange  varbinary(255) NOT NULL,
    paused_by varchar(255)  NOT NULL,
    reason    varchar(1000) NOT NULL,
    paused_at double        NOT NULL,
    PRIMARY KEY (outbox, scope, exchange)
) ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin
  COMMENT='Written by outbox-relay: what people have paused';
