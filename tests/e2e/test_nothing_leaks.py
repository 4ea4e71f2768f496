"""Personal data and secrets through the whole system, and then a search of everything it keeps.

Each canary is a mail address or a name with one word in it that nothing else has. Callers put them
where they belong, and where they do not; calls fail, letters are refused, an event is set aside.
"""

import asyncio
import json
import secrets
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import nats
import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from ironcart.embedded.ports import free_port
from ironcart.events import STREAMS
from shopping import Shop, System, order, running_system, until
from sinks import Scan

CANARY = f"kanarie{secrets.token_hex(5)}"
REFUSED, DEFERRED = f"refused.{CANARY}", f"deferred.{CANARY}"
PERSON = f"Zoë {CANARY} d'Été"
MAIL = f"{CANARY}@shop.example"
SERVICES = ("orders", "inventory", "payments", "notifications", "audit")
# What a person keeps there on purpose: these files are for their owner alone.
KEPT = {
    "the master key": {"master.key"},
    "the owner's password": {"postgres.password", "run.json"},
    "an operator's key": {"run.json", "operator.apikey"},
    "a storefront's key": {"run.json", "storefront.apikey"},
}
PATIENCE_S = 60.0


@dataclass
class Outside:
    """A mail server that asks for a password, and a collector of traces."""

    smtp_password: str = field(default_factory=lambda: f"pw-{secrets.token_hex(12)}")
    stripe_key: str = field(default_factory=lambda: f"sk_test_{secrets.token_hex(16)}")
    letters: list[str] = field(default_factory=list)
    deferred: set[str] = field(default_factory=set)
    traces: list[bytes] = field(default_factory=list)

    async def handle_RCPT(  # noqa: N802 - aiosmtpd calls it so
        self,
        _server: SMTP,
        _session: Session,
        envelope: Envelope,
        address: str,
        _how: list[str],
    ) -> str:
        if REFUSED in address.lower():
            return f"550 5.1.1 there is no {address} here"
        if DEFERRED in address.lower() and address not in self.deferred:
            self.deferred.add(address)
            return f"450 4.7.1 {address} has to wait"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(  # noqa: N802
        self, _server: SMTP, _session: Session, envelope: Envelope
    ) -> str:
        self.letters += envelope.rcpt_tos
        return "250 OK"

    def authenticated(
        self, _server: SMTP, _session: Session, _envelope: Envelope, _method: str, given: Any
    ) -> AuthResult:
        assert isinstance(given, LoginPassword)
        return AuthResult(success=given.password.decode() == self.smtp_password)

    def environ(self, smtp_port: int, traces_port: int) -> dict[str, str]:
        smtp = f"smtp://shop:{self.smtp_password}@127.0.0.1:{smtp_port}"
        return {
            "IRONCART_LOG_LEVEL": "debug",
            "IRONCART_NOTIFICATIONS_SMTP_URL": smtp,
            "IRONCART_PAYMENTS_STRIPE_API_KEY": self.stripe_key,
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{traces_port}",
            "OTEL_TRACES_SAMPLER": "always_on",
            "OTEL_BSP_SCHEDULE_DELAY": "200",
        }


@contextmanager
def collecting(outside: Outside) -> Iterator[int]:
    """Take traces in, in a thread of its own: whoever starts a system blocks the loop."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            outside.traces.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.fixture(scope="module")
def outside() -> Outside:
    return Outside()


@pytest.fixture(scope="module")
def guarded(outside: Outside) -> Iterator[System]:
    """A system of its own, which asks for keys and has secrets that can be told apart."""
    mail = Controller(
        outside,
        hostname="127.0.0.1",
        port=free_port(),
        authenticator=outside.authenticated,
        auth_require_tls=False,
        enable_SMTPUTF8=True,
    )
    mail.start()
    with collecting(outside) as traces_port:
        environ = outside.environ(mail.port, traces_port)
        with running_system("leaks", "--auth", environ=environ) as system:
            yield system
    mail.stop()


@pytest.fixture
async def desk(guarded: System) -> AsyncIterator[Shop]:
    """The system over HTTP, as an operator."""
    key = guarded.run["api_keys"]["operator"]
    headers = {"Authorization": f"Bearer {key}", "User-Agent": f"shop/1 ({MAIL})"}
    timeout = aiohttp.ClientTimeout(total=40)
    async with aiohttp.ClientSession(timeout=timeout, headers=headers) as session:
        yield Shop(guarded, session)


async def place_well(desk: Shop, sku: str) -> list[str]:
    """Orders with addresses and names where they belong; the ids of those that were accepted."""
    people: list[dict[str, Any]] = [
        {"email": MAIL, "name": PERSON},
        {"email": MAIL.upper(), "name": PERSON.upper()},
        {"email": f"first+tag.{MAIL}", "name": f'"{CANARY}", <b>'},
        {"email": f"ünïcödé.{MAIL}"},
        {"email": f"o'hara%{CANARY}@sub.shop.example", "name": CANARY},
        {"email": f"{REFUSED}@shop.example", "name": PERSON},
        {"email": f"{DEFERRED}@shop.example", "name": PERSON},
        {"email": MAIL, "name": PERSON, "payment_method": "pm_card_chargeDeclined"},
    ]
    placed = [
        await desk.place(sku, customer_id=f"C-{number}", **person)
        for number, person in enumerate(people)
    ]
    keyed = {"Idempotency_Key": f"order of {MAIL}", "tracestate": f"shop={MAIL},x@y=1"}
    keyed["traceparent"] = f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"
    for email, expected in ((MAIL, 202), (MAIL, 202), (f"x{MAIL}", 422)):
        body = order(sku, email=email, name=PERSON)
        status, answer = await desk.ask("POST", "orders", "/orders", body, **keyed)
        assert status == expected, answer
    short = await desk.place(sku, quantity=5_000, email=MAIL, name=PERSON)
    return [*placed, short]


async def ask_badly(desk: Shop, sku: str) -> None:
    """Addresses and names where they do not belong; every request is refused."""
    bodies: list[Any] = [
        order(sku, customer_id=MAIL),
        order(MAIL),
        order(sku, currency=MAIL),
        order(sku, payment_method=MAIL),
        order(sku, email=f"{CANARY} at shop.example"),
        order(sku, email=MAIL, name=f"{CANARY}\x00"),
        order(sku, amount=MAIL),
        order(sku) | {MAIL: 1},
        order(sku) | {"items": MAIL},
        [MAIL],
        json.dumps(order(sku, email=MAIL)).encode()[:-3],
        b'{"email": "' + MAIL.encode() + b'\xff"}',
        b'{"email": "' + MAIL.encode() + b'", "name": ' + b"[" * 5_000,
        MAIL.encode() * 5_000,
    ]
    for body in bodies:
        status, answer = await desk.ask("POST", "orders", "/orders", body)
        assert 400 <= status < 500, answer
    for method, service, path, body in (
        ("GET", "orders", f"/orders/{MAIL}", None),
        ("GET", "orders", f"/orders?customer_id={MAIL}", None),
        ("GET", "orders", f"/orders?status={MAIL}&cursor={MAIL}", None),
        ("GET", "orders", f"/{MAIL}", None),
        ("POST", "orders", f"/orders/{MAIL}/cancel", None),
        ("PUT", "inventory", f"/stock/{MAIL}", {"on_hand": 1}),
        ("POST", "inventory", f"/stock/{sku}/adjustments", {"delta": 1, "reason": MAIL}),
        ("GET", "payments", f"/payments/{MAIL}", None),
        ("POST", "payments", f"/payments/{MAIL}/refunds", {}),
        ("POST", "payments", "/webhooks/stripe", {"id": MAIL, "type": MAIL}),
        ("GET", "notifications", f"/notifications?order_id={MAIL}", None),
        ("POST", "notifications", "/webhook-endpoints", {"url": f"http://127.0.0.1/?u={MAIL}"}),
        ("DELETE", "notifications", f"/webhook-endpoints/{MAIL}", None),
        ("GET", "audit", f"/audit/{MAIL}", None),
        (f"X-{CANARY}", "orders", "/orders", None),
    ):
        status, answer = await desk.ask(method, service, path, body, Stripe_Signature=MAIL)
        assert 400 <= status < 500, (method, path, answer)
    async with aiohttp.ClientSession() as stranger:
        headers = {"Authorization": f"Bearer {MAIL}", "Cookie": f"who={MAIL}", "Prefer": MAIL}
        async with stranger.get(f"{desk.system.url('orders')}/orders", headers=headers) as answer:
            assert answer.status == 401


async def refund(desk: Shop, order_id: str) -> None:
    path = f"/payments/{order_id}/refunds"
    status, answer = await desk.ask("POST", "payments", path, {"reason": f"said {MAIL}"})
    assert status == 400, answer
    body = {"amount": 1.00, "reason": "damaged"}
    for _ in range(2):
        key = f"refund for {MAIL}"
        status, answer = await desk.ask("POST", "payments", path, body, Idempotency_Key=key)
        assert status == 202, answer


async def set_aside(desk: Shop, order_id: str) -> None:
    """An event that its reader can never deal with, with the contact that events carry."""

    async def is_audited() -> bool:
        return "OrderConfirmed" in await desk.audited(order_id)

    await until(is_audited)
    found = await desk.get("audit", f"/audit/{order_id}")
    event = next(item["event"] for item in found["items"] if item["type"] == "OrderConfirmed")
    event |= {"id": secrets.token_hex(16)}
    event["data"] |= {"currency": "XXX"}
    client = await nats.connect(desk.system.run["nats"]["urls"][0])
    await client.jetstream().publish("orders.confirmed", json.dumps(event).encode())
    await client.close()

    connection = await asyncpg.connect(desk.system.run["postgres"]["url"])

    async def parked() -> bool:
        query = "SELECT count(*) FROM notifications.parked WHERE letter_seq IS NOT NULL"
        count: int = await connection.fetchval(query)
        return count == 1

    await until(parked, PATIENCE_S)
    await connection.close()


async def register(desk: Shop) -> str:
    """A webhook endpoint that nobody answers at, with a secret of its caller's own."""
    secret = f"whsec_{secrets.token_hex(32)}"
    body = {"url": f"http://127.0.0.1:{free_port()}/hook", "secret": secret}
    status, answer = await desk.ask("POST", "notifications", "/webhook-endpoints", body)
    assert status == 201, answer
    return secret


def needles(system: System, outside: Outside, webhook_secret: str) -> dict[str, str]:
    """Personal data, and every secret that the system knows."""
    folder, run = system.folder, system.run
    found = {
        "personal data": CANARY,
        "the SMTP password": outside.smtp_password,
        "the gateway's key": outside.stripe_key,
        "a webhook's secret": webhook_secret.removeprefix("whsec_"),
        "the master key": (folder / "master.key").read_text().strip(),
        "the owner's password": (folder / "postgres.password").read_text().strip(),
        "an operator's key": run["api_keys"]["operator"],
        "a storefront's key": run["api_keys"]["storefront"],
    }
    for file in ("postgres.roles", "nats.users"):
        kept = json.loads((folder / file).read_text())
        found |= {f"{file}: {name}": password for name, password in kept.items()}
    return found


def allowed(known: dict[str, str]) -> dict[str, set[str]]:
    """Passwords are kept in the files that are named after them, and where a server reads them."""
    own = {name: {file} for name in known for file, mark, _ in [name.partition(": ")] if mark}
    for name in own:
        own[name] |= {"broker-1.conf"} if name.startswith("nats.users") else set()
    own["nats.users: operator"].add("run.json")
    return own | KEPT


def processes(system: System) -> list[int]:
    run = system.run
    services = [pid for service in run["services"].values() for pid in service["pids"]]
    return [*services, *run["nats"]["pids"], run["postgres"]["pid"], run["sandbox"]["pid"]]


async def scanned(system: System, outside: Outside, known: dict[str, str]) -> Scan:
    """Search every sink of a running system."""
    run = system.run
    scan = Scan(known, allowed(known))
    connection = await asyncpg.connect(run["postgres"]["url"])
    await connection.execute("CHECKPOINT")
    await connection.close()
    await scan.tables(run["postgres"]["url"])
    await scan.streams(run["nats"]["urls"][0], [stream.name for stream in STREAMS])
    await scan.pages("metrics", [f"{system.url(name)}/metrics" for name in SERVICES])
    for each in ("varz", "connz?auth=1&subs=1", "jsz?config=1&streams=1&consumers=1"):
        await scan.pages("monitor", [f"{run['nats']['monitor_urls'][0]}/{each}"])
    scan.files("file", system.folder)
    if "data" in run["postgres"]:
        scan.files("database file", Path(run["postgres"]["data"]))
    scan.look("output", "up.out", (system.folder.parent / "up.out").read_bytes())
    for body in outside.traces:
        scan.look("traces", "sent", body)
    scan.command_lines(processes(system))
    return scan


async def test_no_personal_data_and_no_secret_is_left_anywhere(
    guarded: System, desk: Shop, outside: Outside
) -> None:
    sku = await desk.stocked()
    secret = await register(desk)
    await desk.fault(mode="error", rate=0.5, seconds=2)
    load = asyncio.create_task(asyncio.to_thread(guarded.cli, "load", "--orders", "5"))
    placed = await place_well(desk, sku)
    await ask_badly(desk, sku)
    ended = [await desk.ended(order_id, PATIENCE_S) for order_id in placed]
    assert [each["status"] for each in ended] == ["confirmed"] * 7 + ["rejected"] * 2
    await refund(desk, placed[0])
    await set_aside(desk, placed[0])
    assert (await load).returncode == 0

    async def told() -> bool:
        rows = (await desk.get("notifications", "/notifications?limit=500"))["items"]
        mails = [row for row in rows if row["channel"] == "mail" and row["order_id"] in placed]
        return len(mails) == len(placed) and all(row["state"] != "due" for row in mails)

    await until(told, PATIENCE_S)

    known = needles(guarded, outside, secret)
    scan = await scanned(guarded, outside, known)

    assert not scan.found, "\n".join(map(str, scan.found))
    letters = [each.lower() for each in outside.letters]
    assert sum(CANARY in each for each in letters) >= 7, "what is sought did go out"
    assert not [each for each in letters if REFUSED in each]
    assert set(scan.looked) >= {"table", "server", "stream", "metrics", "file", "output", "traces"}
    assert min(scan.looked.values()) > 0
    kept = {file for files in allowed(known).values() for file in files}
    modes = {path.name: path.stat().st_mode & 0o777 for path in guarded.folder.rglob("*")}
    assert {modes[file] for file in kept} == {0o600}
