-- Who owns which share of the rows, so that several relays can work on one outbox. Times are seconds since 1970 by this
-- machine's clock. The tables are shared by all outboxes of the file.
CREATE TABLE IF NOT EXISTS {shares} (
    outbox     TEXT    NOT NULL,
    -- Into how many shares the rows are divided: only one division is in force at a time.
    layout     INTEGER NOT NULL,
    share      INTEGER NOT NULL,
    -- Null: free.
    owner      TEXT,
    -- Grows with every change of owner: what an earlier owner still writes of its failures is refused by it.
    epoch      INTEGER NOT NULL DEFAULT 0,
    expires_at REAL    NOT NULL DEFAULT 0,
    since      REAL    NOT NULL DEFAULT 0,
    PRIMARY KEY (outbox, layout, share)
);

-- The relays that are there, with or without a share.
CREATE TABLE IF NOT EXISTS {members} (
    outbox     TEXT    NOT NULL,
    member     TEXT    NOT NULL,
    layout     INTEGER NOT NULL,
    expires_at REAL    NOT NULL,
    PRIMARY KEY (outbox, member)
);

