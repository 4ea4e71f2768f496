-- migrate:up
-- status is what callers see; it is NULL while facts about an order came before the order itself.
CREATE TABLE orders (
    order_id text PRIMARY KEY,
    caller text,
    customer_id text,
    state text NOT NULL,
    status text,
    amount_minor bigint CHECK (amount_minor > 0),
    currency text,
    items bytea,
    payment_method text,
    contact text,
    reason text,
    version integer NOT NULL,
    trace_id text,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT known_or_early CHECK (
        status IS NULL OR (customer_id IS NOT NULL AND amount_minor IS NOT NULL
                           AND currency IS NOT NULL AND items IS NOT NULL)
    )
);
CREATE INDEX orders_newest ON orders (created_at DESC, order_id DESC) WHERE status IS NOT NULL;
CREATE INDEX orders_by_customer ON orders (customer_id, created_at DESC, order_id DESC);
CREATE INDEX orders_by_status ON orders (status, created_at DESC, order_id DESC);

CREATE TABLE idempotency_keys (
    caller text NOT NULL,
    key text NOT NULL,
    fingerprint bytea NOT NULL,
    order_id text NOT NULL,
    answer bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (caller, key)
);

-- migrate:down
DROP TABLE idempotency_keys, orders;
