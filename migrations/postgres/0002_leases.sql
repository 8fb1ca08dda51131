-- Who owns which share of the rows, so that several relays can work on one outbox. Times are seconds since 1970 by this
-- server's clock. The tables are shared by all outboxes of the schema.
CREATE TABLE IF NOT EXISTS {shares} (
    outbox     text             NOT NULL,
    -- Into how many shares the rows are divided: only one division is in force at a time.
    layout     integer          NOT NULL,
    share      integer          NOT NULL,
    -- Null: free.
    owner      text,
    -- Grows with every change of owner: what an earlier owner still writes of its failures is refused by it.
    epoch      bigint           NOT NULL DEFAULT 0,
    expires_at double precision NOT NULL DEFAULT 0,
    since      double precision NOT NULL DEFAULT 0,
    PRIMARY KEY (outbox, layout, share)
);

-- The relays that are there, with or without a share.
CREATE TABLE IF NOT EXISTS {members} (
    outbox     text             NOT NULL,
    member     text             NOT NULL,
    layout     integer          NOT NULL,
    expires_at double precision NOT NULL,
    PRIMARY KEY (outbox, member)
);

COMMENT ON TABLE {shares} IS 'Written by outbox-relay: which relay owns which share of an outbox';
COMMENT ON TABLE {members} IS 'Written by outbox-relay: the relays of an outbox';
