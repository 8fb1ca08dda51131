-- What the attempts of unsent rows and dead letters failed for: `last_error` has the last alone. Times are seconds since 1970 by
-- this server's clock. The table is shared by all outboxes of the database.
CREATE TABLE IF NOT EXISTS {errors} (
    outbox    varchar(63) NOT NULL,
    -- The row's id, or its number in the relay's own table.
    id        bigint      NOT NULL,
    failed_at double      NOT NULL,
    -- Counted anew after a replay.
    attempt   int         NOT NULL,
    error     text        NOT NULL,
    PRIMARY KEY (outbox, id, failed_at)
) ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin
  COMMENT='Written by outbox-relay: the last errors of each row that was refused';
