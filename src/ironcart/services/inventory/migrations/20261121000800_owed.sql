-- migrate:up
-- Units that were promised or sold, and that no fact has brought so far: on_hand has them, so that
-- it never falls below reserved. Not 0 only while facts are being folded: see fold.
ALTER TABLE stock ADD COLUMN owed bigint NOT NULL DEFAULT 0 CHECK (owed >= 0);

-- migrate:down
ALTER TABLE stock DROP COLUMN owed;
