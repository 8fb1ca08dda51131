-- What the attempts of unsent rows and dead letters failed for: `last_error` has the last alone. Times are seconds since 1970 by
-- this server's clock. The table is shared by all outboxes of the schema.
CREATE TABLE IF NOT EXISTS {errors} (
    outbox    text             NOT NULL,
    -- The row's id, or its number in the relay's own table.
    id        bigint           NOT NULL,
    failed_at double precision NOT NULL,
    -- Counted anew after a replay.
    attempt   integer          NOT NULL,
    error     text             NOT NULL,
    PRIMARY KEY (outbox, id, failed_at)
);

COMMENT ON TABLE {errors} IS 'Written by outbox-relay: the last errors of each row that was refused';
