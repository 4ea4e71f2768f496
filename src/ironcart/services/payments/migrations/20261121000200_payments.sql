-- migrate:up
-- An open job is a state; what the gateway is told next follows from the state alone.
CREATE TABLE payments (
    order_id text PRIMARY KEY,
    state text NOT NULL CHECK (state IN (
        'charging', 'closing', 'voiding', 'refunding', 'op_refunding', 'op_then_refund',
        'succeeded', 'failed', 'voided', 'refunded')),
    amount_minor bigint CHECK (amount_minor > 0),
    currency text,
    payment_method text,
    intent_id text,
    generation integer NOT NULL DEFAULT 0,
    refunded_minor bigint NOT NULL DEFAULT 0,
    decline_code text,
    version integer NOT NULL,
    trace_id text NOT NULL,
    traceparent text NOT NULL,
    causation_id text,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    -- Only an order cancelled before it was reserved has nothing to charge.
    CONSTRAINT amount_unless_tombstone CHECK (
        (amount_minor IS NOT NULL AND currency IS NOT NULL AND payment_method IS NOT NULL)
        OR (state = 'voided' AND intent_id IS NULL))
);
CREATE UNIQUE INDEX payments_by_intent ON payments (intent_id) WHERE intent_id IS NOT NULL;

-- migrate:down
DROP TABLE payments;
