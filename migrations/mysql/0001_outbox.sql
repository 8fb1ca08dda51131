-- The outbox. The application inserts into it in the same transaction as its business change; the relay reads it,
-- publishes, and marks. Every statement can be run again. For MariaDB 10.6 or later and MySQL 8.
--
-- ROW_FORMAT=REDUNDANT is what makes a mark cheap. It keeps room for a column of fixed length that is null, so that
-- setting sent_at changes the row where it is: 137 bytes of redo log, 58 of them for the index. In the default format the
-- row grows, and InnoDB reorganizes its page for nearly every one: 3,815 bytes (MariaDB 10.11, rows of 500 bytes, marked
-- 1,000 at a time).
CREATE TABLE IF NOT EXISTS {outbox} (
    id              bigint       NOT NULL AUTO_INCREMENT PRIMARY KEY COMMENT 'Order of publication within a key',
    message_id      char(36)     CHARACTER SET ascii COLLATE ascii_bin NOT NULL DEFAULT (uuid())
        COMMENT 'AMQP message_id: the same on every copy, for deduplication by consumers',
    -- 512 characters are more than AMQP's 255 bytes: too long a value becomes a dead letter that can be seen, where a
    -- narrow column would cut it (without strict mode) or fail the application's transaction.
    exchange        varchar(512) COMMENT 'Null: RELAY_AMQP_EXCHANGE',
    routing_key     varchar(512) NOT NULL COMMENT 'AMQP routing key, at most 255 bytes',
    ordering_key    varchar(512)
        COMMENT 'Rows with the same key are published in id order; null: no order asked for',
    type            varchar(512) COMMENT 'AMQP type',
    content_type    varchar(512) NOT NULL DEFAULT 'application/json' COMMENT 'AMQP content_type',
    headers         json         NOT NULL DEFAULT ('{}') COMMENT 'AMQP headers: a JSON object',
    properties      json         NOT NULL DEFAULT ('{}')
        COMMENT 'JSON object: correlation_id, reply_to, priority, expiration (ms), content_encoding, app_id, user_id',
    -- Text that is checked, as json is in MariaDB: MySQL's json would not keep the bytes as they were written.
    payload         longtext     NOT NULL COMMENT 'Body of the message, its bytes exactly as stored'
        CHECK (json_valid(payload)),
    -- timestamp, not datetime: an instant, whatever the time zone of the session that writes it.
    created_at      timestamp(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6) COMMENT 'AMQP timestamp',
    available_at    timestamp(6) NULL DEFAULT NULL COMMENT 'Not published before; later rows of its key wait for it',
    attempts        int          NOT NULL DEFAULT 0
        COMMENT 'Refusals so far, written by the relay (outages do not count)',
    next_attempt_at timestamp(6) NULL DEFAULT NULL COMMENT 'Not tried again before, written by the relay',
    last_error      text         COMMENT 'Reason of the last refusal, written by the relay',
    sent_at         timestamp(6) NULL DEFAULT NULL COMMENT 'When the broker had confirmed it, written by the relay',
    dead_at         timestamp(6) NULL DEFAULT NULL
        COMMENT 'When it was given up, written by the relay: a dead letter',
    -- There are no partial indexes: the unsent rows are one end of this one, in id order (the primary key is the last
    -- part of every index), and the dead letters follow them. Without it every sweep would read all rows that were sent
    -- and not purged yet.
    INDEX {unsent_index} (sent_at, dead_at)
) ENGINE=InnoDB ROW_FORMAT=REDUNDANT DEFAULT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin
  COMMENT='Messages to be published by outbox-relay';
