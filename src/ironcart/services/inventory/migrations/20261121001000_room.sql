-- migrate:up
-- A reservation is updated once soon after it was written: room for that in its own page saves it
-- the index.
ALTER TABLE reservations SET (fillfactor = 50);

-- migrate:down
ALTER TABLE reservations RESET (fillfactor);
