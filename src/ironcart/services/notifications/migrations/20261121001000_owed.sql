-- migrate:up
-- Each notification is updated once, from due to sent. An index whose condition mentions state makes
-- that touch every index of the table; owed_to never changes for mail, so it stays in its page.
ALTER TABLE notifications
    ADD COLUMN owed_to text GENERATED ALWAYS AS (
        CASE WHEN state = 'due' AND channel = 'webhook' THEN endpoint_id END) STORED,
    SET (fillfactor = 50);
DROP INDEX notifications_due_at_endpoint;
CREATE INDEX notifications_owed_to ON notifications (owed_to) WHERE owed_to IS NOT NULL;

-- migrate:down
DROP INDEX notifications_owed_to;
ALTER TABLE notifications DROP COLUMN owed_to, RESET (fillfactor);
CREATE INDEX notifications_due_at_endpoint ON notifications (endpoint_id)
    WHERE state = 'due' AND channel = 'webhook';
