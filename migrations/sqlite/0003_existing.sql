-- For an outbox table that the relay did not make: what it has no columns for. The tables are shared by all outboxes of
-- the file.
--
-- Refusals: only rows that were refused are here.
CREATE TABLE IF NOT EXISTS {failures} (
    outbox          TEXT    NOT NULL,
    -- The row's order column, or its number in the other table.
    id              INTEGER NOT NULL,
    attempts        INTEGER NOT NULL,
    next_attempt_at TEXT,
    last_error      TEXT,
    dead_at         TEXT,
    PRIMARY KEY (outbox, id)
) WITHOUT ROWID;

-- Numbers of unsent rows whose table has no column of whole numbers, given in the order in which the relay finds them.
-- AUTOINCREMENT: a number is never given again.
CREATE TABLE IF NOT EXISTS {positions} (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    outbox   TEXT NOT NULL,
    -- No type: the value as it is.
    row_key       NOT NULL,
    UNIQUE (outbox, row_key)
);
