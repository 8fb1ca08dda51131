-- Who owns which share of the rows, so that several relays can work on one outbox. Times are seconds since 1970 by this
-- server's clock. The tables are shared by all outboxes of the database.
CREATE TABLE IF NOT EXISTS {shares} (
    outbox     varchar(63)  NOT NULL,
    -- Into how many shares the rows are divided: only one division is in force at a time.
    layout     int          NOT NULL,
    share      int          NOT NULL,
    -- Null: free.
    owner      varchar(255),
    -- Grows with every change of owner: what an earlier owner still writes of its failures is refused by it.
    epoch      bigint       NOT NULL DEFAULT 0,
    expires_at double       NOT NULL DEFAULT 0,
    since      double       NOT NULL DEFAULT 0,
    PRIMARY KEY (outbox, layout, share)
) ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin
  COMMENT='Written by outbox-relay: which relay owns which share of an outbox';

-- The relays that are there, with or without a share. A member without a name is the row that scripts on an outbox lock.
CREATE TABLE IF NOT EXISTS {members} (
    outbox     varchar(63)  NOT NULL,
    member     varchar(255) NOT NULL,
    layout     int          NOT NULL,
    expires_at double       NOT NULL,
    PRIMARY KEY (outbox, member)
) ENGINE=InnoDB ROW_FORMAT=DYNAMIC DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin
  COMMENT='Written by outbox-relay: the relays of an outbox';
