"""What the rules of statements.yaml have to find, and what they have to leave alone."""

_COLUMNS = "order_id, status"


async def by_hand(connection, customer, order_ids):
    # ruleid: no-statement-made-of-values
    await connection.fetch(f"SELECT * FROM orders WHERE customer_id = '{customer}'")
    # ruleid: no-statement-made-of-values
    await connection.fetchrow(f"SELECT {_COLUMNS} FROM orders WHERE id = {order_ids[0]}")
    # ruleid: no-statement-made-of-values
    await connection.fetchrow(
        f"SELECT {_COLUMNS} FROM orders WHERE id = {order_ids[0]}"
        " ORDER BY created_at",
        order_ids,
    )
    # ruleid: no-statement-made-of-values
    await connection.execute("DELETE FROM orders WHERE customer_id = '%s'" % customer)
    # ruleid: no-statement-made-of-values
    await connection.fetchval("SELECT 1 FROM orders WHERE id = " + order_ids[0])
    # ruleid: no-statement-made-of-values
    await connection.execute("DELETE FROM {}".format(customer))


async def as_arguments(connection, customer, schema):
    # ok: no-statement-made-of-values
    await connection.fetch(f"SELECT {_COLUMNS} FROM orders WHERE customer_id = $1", customer)
    # ok: no-statement-made-of-values
    await connection.fetchrow(
        f"SELECT {_COLUMNS} FROM orders"
        " WHERE id = ANY($1::text[])",
        customer,
    )
    # ok: no-statement-made-of-values
    await connection.fetch("SELECT * FROM orders WHERE customer_id = $1", customer)
