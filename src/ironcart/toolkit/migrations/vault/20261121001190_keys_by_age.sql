-- migrate:up
-- Services ask for the newest, every few seconds.
CREATE INDEX keys_by_age ON keys (created_at);

-- migrate:down
DROP INDEX keys_by_age;
