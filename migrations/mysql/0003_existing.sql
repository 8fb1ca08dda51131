-- For an outbox table that the relay did not make: what it has no columns for. The tables are shared by all outboxes of
-- the database.
--
-- Refusals: only rows that were refused are here.
CREATE TABLE IF NOT EXISTS {failures} (
    outbox          varchar(63) NOT NULL,
    -- The row's order column, or its number in the other table.
    id              bigint      NOT NULL,
    attempts        int         NOT NULL,
    next_attempt_at timestamp(6) NULL DEFAULT NULL,
    last_error      text,
    dead_at         timestamp(6) NULL DEFAULT NULL,
    PRIMARY KEY (outbox, id)
) ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin
  COMMENT='Written by outbox-relay: refusals of rows whose table has no columns for them';

-- Numbers of unsent rows whose table has no column of whole numbers, given in the order in which the relay finds them.
CREATE TABLE IF NOT EXISTS {positions} (
    outbox   varchar(63)     NOT NULL,
    position bigint          NOT NULL AUTO_INCREMENT,
    -- Bytes: keys that a collation takes for the same are other keys.
    row_key  varbinary(1020) NOT NULL,
    PRIMARY KEY (outbox, position),
    UNIQUE KEY (outbox, row_key),
    KEY (position)
) ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin
  COMMENT='Written by outbox-relay: numbers of unsent rows whose table has none';
