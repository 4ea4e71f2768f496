-- migrate:up
-- Nearly every order is updated twice soon after it was written. An update of a column that an index
-- mentions, be it in its condition, touches every index of the table; another one only its page, if
-- there is room. So nothing but phase is indexed of where an order stands: it changes once, when
-- the order leaves 'open', and not from pending to reserved.
ALTER TABLE orders
    ADD COLUMN phase text GENERATED ALWAYS AS (
        CASE WHEN status IN ('pending', 'reserved') THEN 'open' ELSE status END) STORED,
    SET (fillfactor = 45);
CREATE INDEX orders_by_phase ON orders (phase, created_at DESC, order_id DESC);
DROP INDEX orders_by_status, orders_newest;
CREATE INDEX orders_newest ON orders (created_at DESC, order_id DESC);

-- migrate:down
DROP INDEX orders_by_phase, orders_newest;
ALTER TABLE orders DROP COLUMN phase, RESET (fillfactor);
CREATE INDEX orders_newest ON orders (created_at DESC, order_id DESC) WHERE status IS NOT NULL;
CREATE INDEX orders_by_status ON orders (status, created_at DESC, order_id DESC);
