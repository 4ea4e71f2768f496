"""What payments sends to Stripe without its SDK is what the SDK would send, and is sent once."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import stripe

from ironcart.services.payments.gateway import Created, Declined, Gateway, Succeeded
from ironcart.services.payments.gateway.client import Client, StoredFailure
from ironcart.services.payments.gateway.wire import form
from ironcart.toolkit.outcomes import IroncartError, Refused, Unavailable
from ironcart.toolkit.resilience import Breaker

OBJECT = b'{"id":"pi_1","status":"succeeded","data":[],"has_more":false}'
REPLAYED = "idempotent-replayed: true\r\n"
END_OF_HEAD = b"\r\n\r\n"
OF_THE_CLIENT = (b"Accept", b"Accept-Encoding")


class Peer:
    """A gateway that keeps the bytes of every request and answers what it is told."""

    def __init__(self) -> None:
        self.url = ""
        self.requests: list[bytes] = []
        self.status, self.headers, self.cut = 200, "", False
        self.body_for: Callable[[str], bytes] = lambda _path: OBJECT
        self.serving = set[asyncio.Task[None]]()

    def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.serving.add(asyncio.create_task(self._serve(reader, writer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(END_OF_HEAD)
                lengths = [
                    int(line.partition(b":")[2])
                    for line in head.split(b"\r\n")
                    if line.lower().startswith(b"content-length:")
                ]
                self.requests.append(head + await reader.readexactly(sum(lengths)))
                body = self.body_for(head.split(b" ")[1].decode())
                writer.write(
                    f"HTTP/1.1 {self.status} X\r\ncontent-length: {len(body)}\r\n"
                    f"{self.headers}\r\n".encode()
                    + (body[:-1] if self.cut else body)
                )
                if self.cut:
                    writer.close()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()


@asynccontextmanager
async def peer() -> AsyncIterator[Peer]:
    """A peer that listens."""
    found = Peer()
    server = await asyncio.start_server(found.serve, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    found.url = f"http://{host}:{port}"
    try:
        yield found
    finally:
        server.close()
        await asyncio.gather(*found.serving)


class ThroughTheSdk(Client):
    """The client as it would be if every POST went through the SDK."""

    async def _send(self, path: str, *, idempotency_key: str, **params: Any) -> Any:
        asked = self._opened.sdk.raw_request_async(
            "post", path, idempotency_key=idempotency_key, **params
        )
        return (await asked).data


@asynccontextmanager
async def both(url: str) -> AsyncIterator[list[Gateway]]:
    """A gateway as it is, and one whose POSTs go through the SDK."""
    gateways = [Gateway("sk_test_1", url, Breaker("gateway")) for _ in range(2)]
    through = ThroughTheSdk("sk_test_1", url, Breaker("gateway"))
    gateways[1]._client, gateways[1].close = through, through.close
    try:
        yield gateways
    finally:
        for gateway in gateways:
            await gateway.close()


def created(gateway: Gateway, order_id: str = "ORD-1", method: str = "pm_1") -> Awaitable[Any]:
    return gateway.create(
        order_id=order_id,
        amount_minor=1_999,
        currency="EUR",
        method=method,
        generation=0,
        attempts=0,
    )


CALLS: dict[str, Callable[[Gateway], Awaitable[Any]]] = {
    "create": created,
    "create with odd values": lambda gateway: created(gateway, "a b&c=[ü]%5B~+/", "é\r\nx: y"),
    "confirm": lambda gateway: gateway.confirm("pi_1", 2),
    "cancel": lambda gateway: gateway.cancel("pi_1", 0),
    "refund": lambda gateway: gateway.refund("pi_1", 1_999, 0),
    "refund a part": lambda gateway: gateway.refund_part("pi_1", "r 1", 500, 0.0),
}


def read(request: bytes) -> tuple[bytes, dict[bytes, bytes], bytes]:
    """First line, headers and body; without what the SDK's HTTP client says of itself."""
    head, _, body = request.partition(END_OF_HEAD)
    first, *lines = head.split(b"\r\n")
    headers = dict(line.split(b": ", 1) for line in lines)
    return first, {name: headers[name] for name in headers if name not in OF_THE_CLIENT}, body


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
async def test_what_is_sent_is_what_the_sdk_sends(
    call: Callable[[Gateway], Awaitable[Any]],
) -> None:
    async with peer() as stripe_side, both(stripe_side.url) as gateways:
        sent = []
        for gateway in gateways:
            await call(gateway)
            sent.append([each for each in stripe_side.requests if each.startswith(b"POST ")])
            stripe_side.requests.clear()

    assert len(sent[0]) == 1
    assert [read(each) for each in sent[0]] == [read(each) for each in sent[1]]
    assert b"Idempotency-Key: " in sent[0][0]
    assert f"Stripe-Version: {stripe.api_version}\r\n".encode() in sent[0][0]


def test_parameters_are_nested_with_brackets_and_flags_are_words() -> None:
    nested = {"a": {"b": [1, {"c": "x y"}]}, "yes": True, "no": False}

    assert form(nested) == b"a[b][0]=1&a[b][1][c]=x+y&yes=true&no=false"
    assert form({}) == b""


def error(kind: str, **fields: str) -> bytes:
    inside = "".join(f',"{name}":"{value}"' for name, value in fields.items())
    return f'{{"error":{{"type":"{kind}","message":"no"{inside}}}}}'.encode()


INVALID = error("invalid_request_error", code="resource_missing", param="intent")
DECLINE = error("card_error", code="card_declined", decline_code="lost_card")
OUTAGE = error("api_error")


@pytest.mark.parametrize(
    ("status", "headers", "body", "becomes"),
    [
        (200, "", OBJECT, dict),
        (200, REPLAYED, OBJECT, dict),
        (201, "", OBJECT, dict),
        (200, "", b"<html>", Unavailable),
        (200, "", b"", Unavailable),
        (200, "", b'{"id":"pi_1","st', Unavailable),
        (304, "", b"", Unavailable),
        (400, "", INVALID, stripe.InvalidRequestError),
        (400, REPLAYED, INVALID, stripe.InvalidRequestError),
        (400, "", error("idempotency_error"), Unavailable),
        (400, "", error("invalid_request_error", code="rate_limit"), Unavailable),
        (401, "", error("invalid_request_error"), Refused),
        (402, "", DECLINE, stripe.CardError),
        (402, REPLAYED, DECLINE, stripe.CardError),
        (403, "", error("invalid_request_error"), Unavailable),
        (404, "", INVALID, stripe.InvalidRequestError),
        (409, "", error("invalid_request_error"), Unavailable),
        (404, "", b"<html>", Unavailable),
        (429, "", error("invalid_request_error", code="rate_limit"), Unavailable),
        (500, "", OUTAGE, Unavailable),
        (500, REPLAYED, OUTAGE, StoredFailure),
        (502, "", b"<html>", Unavailable),
        (503, "", b"", Unavailable),
    ],
)
async def test_every_answer_to_a_post_is_read_as_the_sdk_reads_it_from_one_request(
    status: int, headers: str, body: bytes, becomes: type
) -> None:
    async with peer() as stripe_side, both(stripe_side.url) as gateways:
        stripe_side.status, stripe_side.headers = status, headers
        stripe_side.body_for = lambda _path: body
        ours, theirs = [await outcome(gateway) for gateway in gateways]
        asked = len(stripe_side.requests)

    assert type(ours) is becomes
    assert asked == len(gateways)
    if becomes is Unavailable and 200 <= status < 300:  # Only its words are others.
        assert type(theirs) is Unavailable
    else:
        assert told(ours) == told(theirs)


async def outcome(gateway: Gateway) -> Any:
    try:
        return dict(await gateway._client.post("/v1/payment_intents/pi_1/confirm", "k"))
    except (IroncartError, stripe.StripeError, StoredFailure) as caught:
        return caught


def told(outcome: Any) -> Any:
    """All that the rest of the service can see of it."""
    names = ("code", "param", "http_status", "http_body", "retry_after_s")
    seen = {name: getattr(outcome, name, None) for name in names}
    details = getattr(outcome, "error", None)
    return type(outcome), str(outcome), seen, getattr(details, "decline_code", None)


async def test_answers_that_come_at_the_same_time_are_not_mixed_up() -> None:
    async with peer() as stripe_side, both(stripe_side.url) as (gateway, _):
        stripe_side.status = 402
        stripe_side.body_for = lambda path: error("card_error", decline_code=path.split("/")[-2])
        ids = [f"pi_{number}" for number in range(20)]
        replies = await asyncio.gather(*(gateway.confirm(each, 0) for each in ids))

        assert replies == [Declined(each) for each in ids]
        stripe_side.status, stripe_side.body_for = 200, lambda _path: OBJECT
        assert await created(gateway) == Created("pi_1")
        assert await gateway.confirm("pi_1", 0) == Succeeded()
        assert len(stripe_side.requests) == len(ids) + 2


async def test_an_answer_cut_off_in_the_middle_is_no_answer() -> None:
    async with peer() as stripe_side, both(stripe_side.url) as (gateway, _):
        stripe_side.cut = True
        with pytest.raises(Unavailable):
            await gateway.confirm("pi_1", 0)
        stripe_side.cut = False

        assert await gateway.confirm("pi_1", 0) == Succeeded()


@pytest.mark.parametrize("call", ["confirm", "cancel"])
async def test_an_answer_about_another_intent_is_no_answer(call: str) -> None:
    async with peer() as stripe_side, both(stripe_side.url) as gateways:
        stripe_side.body_for = lambda _path: b'{"id":"pi_2","status":"succeeded"}'

        with pytest.raises(Unavailable, match="about another intent"):
            await getattr(gateways[0], call)("pi_1", 0)
