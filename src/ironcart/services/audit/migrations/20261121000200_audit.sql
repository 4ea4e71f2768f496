-- migrate:up
-- Both tables are only ever inserted into and read.
CREATE TABLE entries (
    stream text NOT NULL,
    stream_seq bigint NOT NULL CHECK (stream_seq > 0),
    subject text NOT NULL,
    event_id text NOT NULL,
    type text NOT NULL,
    aggregate_id text NOT NULL,
    headers text NOT NULL,
    body bytea NOT NULL,
    stored_at timestamptz NOT NULL,
    received_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (stream, stream_seq)
);
CREATE INDEX entries_of_aggregate ON entries (aggregate_id, stored_at, stream, stream_seq)
    WHERE aggregate_id <> '';

-- hash = sha256(the hash before || stream_seq as 8 bytes || subject || 00 || event_id || 00 ||
-- sha256(body)); before the first comes sha256(stream).
CREATE TABLE links (
    stream text NOT NULL,
    stream_seq bigint NOT NULL CHECK (stream_seq > 0),
    hash bytea NOT NULL,
    linked_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (stream, stream_seq)
);

-- migrate:down
DROP TABLE links, entries;
