-- migrate:up
CREATE TABLE notifications (
    order_id text NOT NULL,
    template text NOT NULL CHECK (template IN ('confirmed', 'rejected', 'cancelled')),
    channel text NOT NULL CHECK (channel IN ('mail')),
    state text NOT NULL DEFAULT 'due' CHECK (state IN ('due', 'sent', 'failed')),
    message_id text,
    recipient_hash text NOT NULL DEFAULT '',
    contact text,
    reason text,
    -- What the template and the facts about this notification need: JSON.
    data bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (order_id, template, channel)
);
CREATE INDEX notifications_newest
    ON notifications (created_at DESC, order_id DESC, template DESC, channel DESC);

-- migrate:down
DROP TABLE notifications;
