-- migrate:up
-- A turn that was cut short goes on below the intent page_after; what it has compared leaves nothing
-- open that was created before open_from (unix seconds).
ALTER TABLE reconciler ADD COLUMN page_after text, ADD COLUMN open_from bigint;

-- migrate:down
ALTER TABLE reconciler DROP COLUMN page_after, DROP COLUMN open_from;
