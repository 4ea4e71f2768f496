-- migrate:up
-- One row for each time that this database was found older than what had been published from it.
CREATE TABLE recoveries (
    began_at timestamptz NOT NULL,
    events integer NOT NULL DEFAULT 0,
    rewound_at timestamptz,
    -- How far each stream has to be read until it is over: JSON.
    until text,
    ended_at timestamptz
);

-- migrate:down
DROP TABLE recoveries;
