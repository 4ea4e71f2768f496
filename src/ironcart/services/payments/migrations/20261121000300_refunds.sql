-- migrate:up
-- recovering: look for intents of this order at the gateway before any other call about it.
-- looking: somebody says that there is news at the gateway about a payment that has ended.
ALTER TABLE payments
    ADD COLUMN refund_id text,
    ADD COLUMN refunding_minor bigint CHECK (refunding_minor > 0),
    ADD COLUMN refund_asked_at timestamptz,
    ADD COLUMN looking boolean NOT NULL DEFAULT false,
    ADD COLUMN recovering boolean NOT NULL DEFAULT false,
    ADD CONSTRAINT refund_under_way CHECK (
        state NOT IN ('op_refunding', 'op_then_refund')
        OR (refund_id IS NOT NULL AND refunding_minor IS NOT NULL)),
    DROP CONSTRAINT amount_unless_tombstone,
    ADD CONSTRAINT amount_unless_tombstone CHECK (
        (amount_minor IS NOT NULL AND currency IS NOT NULL AND payment_method IS NOT NULL)
        OR state IN ('voiding', 'voided'));

-- What operators asked for; a key is kept for ever.
CREATE TABLE refunds (
    refund_id text PRIMARY KEY,
    order_id text NOT NULL,
    amount_minor bigint NOT NULL CHECK (amount_minor > 0),
    reason text NOT NULL,
    caller text NOT NULL,
    key text,
    fingerprint bytea NOT NULL,
    answer bytea NOT NULL,
    asked_at timestamptz NOT NULL DEFAULT now(),
    UNIQUE (caller, key)
);

CREATE TABLE webhooks (
    id text PRIMARY KEY,
    type text NOT NULL,
    intent_id text,
    received_at timestamptz NOT NULL DEFAULT now()
);

-- One row: replicas take turns. Accounted for are intents created before the watermark, and events
-- up to batch_no.
CREATE TABLE reconciler (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    watermark bigint NOT NULL DEFAULT 0,
    batch_no bigint NOT NULL DEFAULT 0,
    claimed_until timestamptz,
    finished_at timestamptz
);
INSERT INTO reconciler DEFAULT VALUES;

-- migrate:down
DROP TABLE reconciler, webhooks, refunds;
ALTER TABLE payments
    DROP CONSTRAINT refund_under_way,
    DROP CONSTRAINT amount_unless_tombstone,
    ADD CONSTRAINT amount_unless_tombstone CHECK (
        (amount_minor IS NOT NULL AND currency IS NOT NULL AND payment_method IS NOT NULL)
        OR (state = 'voided' AND intent_id IS NULL)),
    DROP COLUMN refund_id, DROP COLUMN refunding_minor, DROP COLUMN refund_asked_at,
    DROP COLUMN looking, DROP COLUMN recovering;
