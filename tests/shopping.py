"""What end-to-end tests do: run commands against a system, and shop in it over HTTP."""

import asyncio
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp

from ironcart.embedded.placement import forget
from ironcart.embedded.ports import HTTP_ORDER, free_port, is_free

UP = (sys.executable, "-m", "ironcart.cli", "up")
# Ten times what a quiet machine takes; below what a test may take, so that the output is shown.
READY_WITHIN_S = 150.0
# What `up` promises.
STOPPED_WITHIN_S = 45.0
# Longer than the longest, a `verify` that waits in vain for quiet.
COMMAND_ENDS_WITHIN_S = 150.0
SOON_S = 30.0
ENDED = ("confirmed", "rejected", "cancelled")


class System:
    """A system that `ironcart up` runs on a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.parked = 0  # dead letters that tests made on purpose

    @property
    def run(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "run.json").read_text())
        return found

    def url(self, service: str) -> str:
        run = self.run
        url: str = (run if service == "sandbox" else run["services"])[service]["url"]
        return url

    def command(self, *arguments: str) -> list[str]:
        """How to run an `ironcart` command against this system."""
        return [sys.executable, "-m", "ironcart.cli", *arguments, "--data", str(self.folder)]

    def cli(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run an `ironcart` command against this system."""
        return subprocess.run(
            self.command(*arguments),
            capture_output=True,
            text=True,
            timeout=COMMAND_ENDS_WITHIN_S,
            check=False,
        )

    def verify(self, *options: str) -> str:
        """Every invariant, from the outside; the report, once all of them hold."""
        expected = ("--expect-dead-letters", str(self.parked))
        done = self.cli("verify", "--settle", "60", *expected, *options)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def kill(self, service: str) -> int:
        """kill -9 one service; the supervisor brings it back."""
        pid: int = self.run["services"][service]["pids"][0]
        os.kill(pid, signal.SIGKILL)
        return pid


class Shop:
    """A storefront and an operator, over HTTP."""

    def __init__(self, system: System, session: aiohttp.ClientSession) -> None:
        self.system, self._session = system, session

    async def ask(
        self, method: str, service: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, Any]:
        """One request; the status and the decoded body."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if body is not None and "Content-Type" not in named:
            named["Content-Type"] = "application/json"
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        url = self.system.url(service) + path
        async with self._session.request(method, url, data=data, headers=named) as answer:
            text = await answer.text()
            return answer.status, json.loads(text) if text else None

    async def get(self, service: str, path: str) -> Any:
        status, body = await self.ask("GET", service, path)
        assert status == 200, body
        return body

    async def stocked(self, on_hand: int = 1_000) -> str:
        """A SKU of this test's own."""
        sku = f"SKU-{secrets.token_hex(6)}"
        status, body = await self.ask("PUT", "inventory", f"/stock/{sku}", {"on_hand": on_hand})
        assert status == 200, body
        return sku

    async def place(self, sku: str, quantity: int = 1, **fields: Any) -> str:
        """Place an order; its id."""
        status, body = await self.ask("POST", "orders", "/orders", order(sku, quantity, **fields))
        assert status == 202, body
        order_id: str = body["order_id"]
        return order_id

    async def order(self, order_id: str) -> Any:
        return await self.get("orders", f"/orders/{order_id}")

    async def ended(self, order_id: str, within_s: float = SOON_S) -> Any:
        """The order, once it has ended."""
        await until(lambda: self._has_ended(order_id), within_s)
        return await self.order(order_id)

    async def _has_ended(self, order_id: str) -> bool:
        status, body = await self.ask("GET", "orders", f"/orders/{order_id}")
        return status == 200 and body["status"] in ENDED

    async def charge(self, order_id: str) -> Any:
        """What the gateway knows about an order; None when nothing."""
        found = await self.get("sandbox", f"/sandbox/charges?order_id={order_id}")
        assert len(found) <= 1, "more than one intent for an order"
        return found[0] if found else None

    async def audited(self, order_id: str) -> list[str]:
        """The types of the events in an order's trail."""
        status, body = await self.ask("GET", "audit", f"/audit/{order_id}")
        return [item["type"] for item in body["items"]] if status == 200 else []

    async def fault(self, **fault: Any) -> None:
        status, body = await self.ask("POST", "sandbox", "/sandbox/faults", fault)
        assert status < 300, body

    async def heal(self) -> None:
        status, body = await self.ask("DELETE", "sandbox", "/sandbox/faults")
        assert status < 300, body


def order(sku: str, quantity: int = 1, **fields: Any) -> dict[str, Any]:
    """The body of POST /orders."""
    return {
        "customer_id": "C-1",
        "currency": "EUR",
        "items": [{"sku": sku, "quantity": quantity, "unit_price": 19.99}],
        "email": "someone@shop.example",
        **fields,
    }


async def until(met: Callable[[], Awaitable[bool]], within_s: float = SOON_S) -> None:
    """Wait for a condition; fails when it does not come true in time."""
    deadline = time.monotonic() + within_s
    while not await met():
        assert time.monotonic() < deadline, f"not within {within_s} s"
        await asyncio.sleep(0.05)


def free_ports() -> int:
    """The first of as many free ports in a row as `up` takes."""
    while True:
        first = free_port()
        if all(is_free(port) for port in range(first, first + len(HTTP_ORDER))):
            return first


@contextmanager
def running_system(
    name: str, *options: str, environ: Mapping[str, str] | None = None
) -> Iterator[System]:
    """Run `up` on a folder of its own; at the end it has to stop cleanly, in time.

    `environ` is added to what is passed on.

    Nothing of it is left then, except the folder of one that failed.
    """
    top = Path(tempfile.mkdtemp(prefix=f"ironcart-{name}-", dir="/var/tmp"))
    top.chmod(0o755)
    folder, output = top / "data", top / "up.out"
    with output.open("wb") as out:
        process = subprocess.Popen(
            [*UP, "--data", str(folder), "--port", str(free_ports()), *options],
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environ or {})},
        )
    try:
        deadline = time.monotonic() + READY_WITHIN_S
        while not (folder / "run.json").exists():
            assert process.poll() is None, output.read_text()
            assert time.monotonic() < deadline, output.read_text()
            time.sleep(0.05)
        yield System(folder)
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOPPED_WITHIN_S) == 0, output.read_text()
    finally:
        process.kill()  # Its children die with it.
        process.wait()
    forget(folder)
    shutil.rmtree(top)
