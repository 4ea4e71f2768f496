-- migrate:up
-- One key a customer, wrapped by the master key. Deleting a row forgets the customer.
CREATE TABLE keys (
    customer_id text PRIMARY KEY,
    wrapped bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

-- migrate:down
DROP TABLE keys;
