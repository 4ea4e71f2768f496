-- migrate:up
-- A payment is updated twice soon after it was written: room for that in its own page saves the
-- second one every index.
ALTER TABLE payments SET (fillfactor = 50);

-- migrate:down
ALTER TABLE payments RESET (fillfactor);
