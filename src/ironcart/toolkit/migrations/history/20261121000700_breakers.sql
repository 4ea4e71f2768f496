-- migrate:up
-- What the replicas of a service know together about the other side: open until then, NULL when it
-- is closed; and until when one of them may probe for all.
CREATE TABLE breakers (
    name text PRIMARY KEY,
    open_until timestamptz,
    probing_until timestamptz,
    changed_at timestamptz NOT NULL DEFAULT now()
);

-- migrate:down
DROP TABLE breakers;
