-- For an outbox table that the relay did not make: what it has no columns for. The tables are shared by all outboxes of
-- the schema.
--
-- Refusals: only rows that were refused are here.
CREATE TABLE IF NOT EXISTS {failures} (
    outbox          text    NOT NULL,
    -- The row's order column, or its number in the other table.
    id              bigint  NOT NULL,
    attempts        integer NOT NULL,
    next_attempt_at timestamptz,
    last_error      text,
    dead_at         timestamptz,
    PRIMARY KEY (outbox, id)
);

-- Numbers of unsent rows whose table has no column of whole numbers, given in the order in which the relay finds them.
CREATE TABLE IF NOT EXISTS {positions} (
    outbox   text   NOT NULL,
    position bigint GENERATED ALWAYS AS IDENTITY,
    row_key  text   NOT NULL,
    PRIMARY KEY (outbox, position),
    UNIQUE (outbox, row_key)
);

COMMENT ON TABLE {failures} IS 'Written by outbox-relay: refusals of rows whose table has no columns for them';
COMMENT ON TABLE {positions} IS 'Written by outbox-relay: numbers of unsent rows whose table has none';
