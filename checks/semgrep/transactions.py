"""What the rules of transactions.yaml have to find, and what they have to leave alone."""


async def charge_inside(database, gateway, order):
    async with database.transaction() as connection:
        # ruleid: no-call-outside-in-a-transaction
        await gateway.create(order)
        await connection.execute("UPDATE payments SET state = 'created'")


async def charge_outside(database, gateway, order):
    # ok: no-call-outside-in-a-transaction
    found = await gateway.create(order)
    async with database.transaction() as connection:
        # ok: no-call-outside-in-a-transaction
        await connection.execute("UPDATE payments SET intent = $1", found)


async def mail_in_the_second_of_two(self):
    async with self._database.acquire() as connection, connection.transaction():
        # ruleid: no-call-outside-in-a-transaction
        await self._mailer.send("letter")


async def wait_inside(self):
    async with self._database.transaction() as connection:
        # ruleid: no-call-outside-in-a-transaction
        await asyncio.sleep(1)
        await connection.execute("SELECT 1")


class Handlers:
    async def handle(self, transaction: Transaction, messages):
        # ruleid: no-call-outside-in-a-transaction
        await self.gateway.confirm(messages)
        # ok: no-call-outside-in-a-transaction
        await self.jobs.add(transaction, messages)

    async def settle(self, connection: Connection, results):
        # ruleid: no-call-outside-in-a-transaction
        await self.gateway.look("pi_1")
        # ok: no-call-outside-in-a-transaction
        await connection.execute("DELETE FROM jobs")

    async def call(self, payload, attempts):
        # ok: no-call-outside-in-a-transaction
        return await self.gateway.confirm(payload, attempts)


async def tell_early(self):
    async with self._database.transaction() as connection:
        commit = await self._history.record(connection, [])
        # ruleid: no-publish-before-the-commit
        self._outbox.hand_over(commit)


async def tell_early_from_a_handler(outbox, transaction: Transaction, commit):
    # ruleid: no-publish-before-the-commit
    await outbox.publish(commit)
    # ok: no-publish-before-the-commit
    transaction.after_commit.append(lambda: None)


async def tell_in_time(self):
    async with self._database.transaction() as connection:
        commit = await self._history.record(connection, [])
    # ok: no-publish-before-the-commit
    self._outbox.hand_over(commit)


async def ack_early(self, deliveries):
    async with self._database.transaction() as connection:
        await connection.execute("SELECT 1")
        # ruleid: no-ack-before-the-commit
        await self.puller.ack(deliveries)


async def ack_in_time(self, deliveries):
    async with self._database.transaction() as connection:
        await connection.execute("SELECT 1")
    # ok: no-ack-before-the-commit
    await self.puller.ack(deliveries)
