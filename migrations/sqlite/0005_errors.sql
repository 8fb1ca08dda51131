-- What the attempts of unsent rows and dead letters failed for: `last_error` has the last alone. Times are seconds since 1970 by
-- this machine's clock. The table is shared by all outboxes of the file.
CREATE TABLE IF NOT EXISTS {errors} (
    outbox    TEXT    NOT NULL,
    -- The row's id, or its number in the relay's own table.
    id        INTEGER NOT NULL,
    failed_at REAL    NOT NULL,
    -- Counted anew after a replay.
    attempt   INTEGER NOT NULL,
    error     TEXT    NOT NULL,
    PRIMARY KEY (outbox, id, failed_at)
) WITHOUT ROWID;
