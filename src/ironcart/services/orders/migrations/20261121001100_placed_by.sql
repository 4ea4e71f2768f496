-- migrate:up
-- A storefront lists its own orders. Callers who were asked for a key or a token have a colon in
-- their names; orders of the others are in no such list, and should not pay for it.
CREATE INDEX orders_by_caller ON orders (caller, created_at DESC, order_id DESC)
    WHERE caller LIKE '%:%';

-- migrate:down
DROP INDEX orders_by_caller;
