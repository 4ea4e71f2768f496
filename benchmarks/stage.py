"""A bare stage: a broker and a database as `ironcart up` has them, provisioned, with no service."""

import contextlib
import json
import os
import random
import shutil
import string
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, Self

from benchmarks.bed import CannotMeasure, cpu_s
from ironcart.cli.provision import provision
from ironcart.embedded.folder import master_key
from ironcart.embedded.nats_server import NatsServer
from ironcart.embedded.placement import forget
from ironcart.embedded.ports import HOST, free_port
from ironcart.embedded.postgres import Postgres
from ironcart.embedded.process import Child, Server
from ironcart.events import CURRENCY_DEFAULT, Item, OrderCreated, Requested
from ironcart.load.basket import Basket, sku_names
from ironcart.toolkit.broker import Broker, Outgoing, publish
from ironcart.toolkit.broker.publisher import BATCH_MESSAGES_MAX
from ironcart.toolkit.database import Database
from ironcart.toolkit.envelope import seal
from ironcart.toolkit.outcomes import Fact

ROOT = Path(__file__).parent.parent
SKUS = 50
ON_HAND = 1_000_000_000
CUSTOMERS = 1_000
# A mail address and a name under a customer's key, as the vault writes them, in characters.
CONTACT_CHARACTERS = 88
PART_STOP_TIMEOUT_S = 20.0
_STOCK = "INSERT INTO inventory.stock (sku, on_hand) SELECT sku, $2 FROM unnest($1::text[]) AS sku"


class Part(Server):
    """A process beside the broker and the database; its end is tied to ours."""

    def __init__(self, child: Child) -> None:
        self._what = child

    def child(self) -> Child:
        """How to run it."""
        return self._what


class Stage:
    """A fresh broker and a fresh database, in a folder of their own that is deleted at the end.

    Enter it on the main thread: the lives of the servers are tied to it.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ironcart-stage-", dir="/var/tmp"))
        self.folder.chmod(0o755)
        self._ports = [free_port()]
        for _ in range(3):
            self._ports.append(free_port(avoid=self._ports))
        port, monitor_port, postgres_port, self.http_port = self._ports
        self.broker = NatsServer(self.folder / "nats", port=port, monitor_port=monitor_port)
        self.postgres = Postgres(self.folder, port=postgres_port)

    async def __aenter__(self) -> Self:
        try:
            self.broker.start()
            self.postgres.start()
            await provision(self.environ())
        except BaseException:
            self._close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        self.broker.terminate()
        self.postgres.terminate()
        with contextlib.suppress(OSError):
            forget(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)

    def environ(self) -> dict[str, str]:
        """What provisioning and a service are told."""
        own = {
            "NATS_URL": self.broker.url,
            "NATS_MONITOR_URL": self.broker.monitor_url,
            "DATABASE_URL": self.postgres.url,
            "VAULT_DATABASE_URL": self.postgres.url,
            "MASTER_KEY": master_key(self.folder, may_create=True),
            "AUTH": "off",
            "HOST": HOST,
            "PORT": str(self.http_port),
            "LOG_LEVEL": "info",
        }
        told = {f"IRONCART_{name}": value for name, value in own.items()}
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
        return {**os.environ, **told, "PYTHONPATH": path}

    def python(self, name: str, module: str, *arguments: str) -> Child:
        """Say how to run a module; its output goes to `NAME.log` in the folder."""
        return Child(
            name=name,
            argv=(sys.executable, "-m", module, *arguments),
            env=self.environ(),
            log=self.folder / f"{name}.log",
            ready=lambda: True,
        )

    @contextmanager
    def part(self, child: Child) -> Iterator[Part]:
        """Run a process until the block ends; raises `CannotMeasure` with its last words."""
        part = Part(child)
        part.start()
        try:
            yield part
        except CannotMeasure as error:
            raise CannotMeasure(f"{error}: {child.log.read_text()[-500:]}") from error
        finally:
            part.terminate(PART_STOP_TIMEOUT_S)

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Broker]:
        """A connection to the broker."""
        broker = Broker(self.broker.url, "stage")
        await broker.connect()
        try:
            yield broker
        finally:
            await broker.close()

    @asynccontextmanager
    async def database(self) -> AsyncIterator[Database]:
        """Connections to the database; name the schemas."""
        database = Database(self.postgres.url, "public", "stage", command_timeout_s=60)
        try:
            yield database
        finally:
            await database.close()

    async def fill(self) -> None:
        """Put more on the shelves than will ever be ordered."""
        async with self.database() as database:
            await database.execute(_STOCK, sku_names(SKUS), ON_HAND)

    def use(self) -> dict[str, float]:
        """CPU seconds that the servers have used so far."""
        return {"postgres": cpu_s(self.postgres.pid), "nats-server": cpu_s(self.broker.pid)}


def shopping(seed: int = 1) -> Iterator[OrderCreated]:
    """Orders without end, as the load generator places them: the same for the same seed."""
    basket = Basket("stage", customers=CUSTOMERS, skus=SKUS, seed=seed)
    draw = random.Random(seed)  # noqa: S311 - shopping, not secrets
    characters = string.ascii_letters + string.digits
    while True:
        asked: Mapping[str, Any] = json.loads(basket.next().body, parse_float=Decimal)
        items = tuple(
            Item(each["sku"], each["quantity"], Decimal(each["unit_price"]))
            for each in asked["items"]
        )
        yield OrderCreated(
            order_id=f"ORD-{draw.getrandbits(104):026X}",
            customer_id=asked["customer_id"],
            amount=sum((each.quantity * each.unit_price for each in items), Decimal("0.00")),
            currency=CURRENCY_DEFAULT,
            items=items,
            contact="".join(draw.choices(characters, k=CONTACT_CHARACTERS)),
            request=Requested(
                "anonymous", f"{draw.getrandbits(256):064x}", f"{draw.getrandbits(256):064x}"
            ),
        )


async def place(broker: Broker, count: int) -> int:
    """Have `count` OrderCreated in their stream, as orders publishes them; returns the units."""
    orders, units, left = shopping(), 0, count
    while left:
        messages = []
        for _ in range(min(left, BATCH_MESSAGES_MAX)):
            order = next(orders)
            units += sum(item.quantity for item in order.items or ())
            messages.append(_told(order))
        await publish(broker, messages)
        left -= len(messages)
    return units


def _told(order: OrderCreated) -> Outgoing:
    trace_id = uuid.uuid4().hex
    fact = Fact(order.order_id, 1, order)
    key, body = seal("orders", fact, trace_id=trace_id, causation_id=None)
    headers = {"traceparent": f"00-{trace_id}-{trace_id[:16]}-00"}
    return Outgoing(str(key), "orders.created", body, headers)
