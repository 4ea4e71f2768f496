-- migrate:up
CREATE TABLE webhook_endpoints (
    endpoint_id text PRIMARY KEY,
    url text NOT NULL UNIQUE CHECK (length(url) <= 2048),
    url_hash text NOT NULL,
    events text[] NOT NULL,
    -- Ciphertext under a key derived from IRONCART_MASTER_KEY.
    secret bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    -- When it said that it is gone for good (410).
    disabled_at timestamptz
);

ALTER TABLE notifications
    ADD COLUMN endpoint_id text NOT NULL DEFAULT '',
    DROP CONSTRAINT notifications_channel_check,
    ADD CONSTRAINT notifications_channel_check CHECK (channel IN ('mail', 'webhook')),
    ADD CONSTRAINT notifications_endpoint_check CHECK ((channel = 'webhook') = (endpoint_id <> '')),
    DROP CONSTRAINT notifications_pkey,
    ADD PRIMARY KEY (order_id, template, channel, endpoint_id);
DROP INDEX notifications_newest;
CREATE INDEX notifications_newest ON notifications
    (created_at DESC, order_id DESC, template DESC, channel DESC, endpoint_id DESC);
CREATE INDEX notifications_due_at_endpoint ON notifications (endpoint_id)
    WHERE state = 'due' AND channel = 'webhook';

-- Mail and webhooks are leased apart from each other.
CREATE INDEX jobs_due_mail ON jobs (attempts, due_at) WHERE key NOT LIKE 'webhook:%';
CREATE INDEX jobs_due_webhook ON jobs (attempts, due_at) WHERE key LIKE 'webhook:%';

-- migrate:down
DROP INDEX jobs_due_mail, jobs_due_webhook;
DELETE FROM jobs WHERE key LIKE 'webhook:%';
DELETE FROM notifications WHERE channel = 'webhook';
DROP INDEX notifications_newest, notifications_due_at_endpoint;
ALTER TABLE notifications
    DROP CONSTRAINT notifications_pkey,
    DROP CONSTRAINT notifications_endpoint_check,
    DROP CONSTRAINT notifications_channel_check,
    ADD CONSTRAINT notifications_channel_check CHECK (channel IN ('mail')),
    DROP COLUMN endpoint_id,
    ADD PRIMARY KEY (order_id, template, channel);
CREATE INDEX notifications_newest
    ON notifications (created_at DESC, order_id DESC, template DESC, channel DESC);
DROP TABLE webhook_endpoints;
