-- migrate:up
-- How a link was made. 1 is what it has been until now. 2: hash = sha256(the hash before ||
-- stream_seq as 8 bytes || sha256(subject || 00 || event_id || 00 || type || 00 || aggregate_id ||
-- 00 || headers || 00 || stored_at in microseconds since 1970, in decimal || 00 || body)).
ALTER TABLE links ADD COLUMN version smallint NOT NULL DEFAULT 1;

-- Copies of what was signed and is exported; only ever inserted into and read.
CREATE TABLE checkpoints (
    number bigint PRIMARY KEY CHECK (number > 0),
    key_id text NOT NULL,
    line text NOT NULL,
    made_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX checkpoints_of_key ON checkpoints (key_id, number);

-- migrate:down
DROP TABLE checkpoints;
ALTER TABLE links DROP COLUMN version;
