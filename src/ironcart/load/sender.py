"""Placing one order: logged before it is sent, and sent again under the same key until answered."""

import asyncio
import hashlib
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import aiohttp
import msgspec

from ironcart.load.basket import NewOrder, other_body
from ironcart.load.figures import Tally
from ironcart.load.log import LoadLog
from ironcart.load.trust import untrusted

REQUEST_TIMEOUT_S = 15.0
RETRY_WINDOW_S = 45.0
ATTEMPTS_MAX = 40
RETRY_DELAY_S = 0.1
RETRY_DELAY_MAX_S = 2.0
# In every hundred orders one is sent twice at once, one again after its answer, and in every two
# hundred one key is tried with another body, so that the edge's promise about keys is exercised.
TWIN_EVERY, TWIN_AT = 100, 25
REPEAT_EVERY, REPEAT_AT = 100, 50
OTHER_EVERY, OTHER_AT = 200, 75

Accepted = Callable[[str], None]


class _Answer(msgspec.Struct):
    order_id: str = ""


class Sender:
    """Sends orders to one address; `accepted` hears each new order id once.

    Never raises for what a server or a network does, but for a certificate that is not trusted:
    `InvalidPlanError`. An `OSError` of the log ends the run, too.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        orders_url: str,
        log: LoadLog,
        *,
        tally: Tally,
        accepted: Accepted,
    ) -> None:
        self._session = session
        self._url = f"{orders_url}/orders"
        self._log = log
        self._tally = tally
        self._accepted = accepted
        self._answers = msgspec.json.Decoder(_Answer)
        self.stopping = False

    async def place(self, order: NewOrder, due_s: float) -> None:
        """Place one order that was due at `due_s` (monotonic), with retries, and count it."""
        tally = self._tally
        tally.sent += 1
        if order.number % TWIN_EVERY == TWIN_AT:
            tally.probes += 1
            twins = await asyncio.gather(self._insist(order, 0), self._insist(order, ATTEMPTS_MAX))
            status, order_id = max(twins, key=lambda answer: answer[0] == 202)
        else:
            status, order_id = await self._insist(order, 0)
        if status == 202:
            tally.accepted += 1
            tally.accept_s.append(time.monotonic() - due_s)
            self._accepted(order_id)
            await self._probe(order)
        elif 400 <= status < 500:
            tally.refused[f"{status}"] += 1
        else:
            tally.unknown += 1

    async def _insist(self, order: NewOrder, attempt: int) -> tuple[int, str]:
        """Send under one key until there is an answer that means something, within limits."""
        give_up_s = time.monotonic() + RETRY_WINDOW_S
        delay_s = RETRY_DELAY_S
        for number in range(attempt + 1, attempt + ATTEMPTS_MAX + 1):
            status, order_id = await self._send(order, number, order.body)
            if status and status != 429 and status < 500:
                break
            if self.stopping or time.monotonic() >= give_up_s:
                break
            self._tally.retries += 1
            await asyncio.sleep(delay_s * random.uniform(0.5, 1))  # noqa: S311 - jitter
            delay_s = min(2 * delay_s, RETRY_DELAY_MAX_S)
        return status, order_id

    async def _probe(self, order: NewOrder) -> None:
        """Use an answered key again, with the same body or another; the log is what counts."""
        if order.number % REPEAT_EVERY == REPEAT_AT:
            self._tally.probes += 1
            await self._send(order, 2 * ATTEMPTS_MAX + 1, order.body)
        elif order.number % OTHER_EVERY == OTHER_AT:
            self._tally.probes += 1
            await self._send(order, 1, other_body(order.body))

    async def _send(self, order: NewOrder, attempt: int, body: bytes) -> tuple[int, str]:
        """Send once; returns (0, "") when no answer came. Both ends are in the log."""
        about: dict[str, Any] = {"key": order.key, "attempt": attempt}
        if body is not order.body:
            about["other_body"] = True
        request = {"kind": "sent", "at": _now(), **about, "body_sha256": _sha256(body)}
        if attempt == 1:
            request["body"] = msgspec.Raw(body)
        self._log.write(request)
        try:
            async with self._session.post(
                self._url,
                data=body,
                headers={"Idempotency-Key": order.key, "Content-Type": "application/json"},
            ) as response:
                answer = await response.read()
                status = response.status
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            failed = f"{type(error).__name__}: {error}"
            self._log.write({"kind": "answer", "at": _now(), **about, "status": 0, "error": failed})
            if isinstance(error, aiohttp.ClientConnectorCertificateError):
                raise untrusted(self._url, error) from error
            return 0, ""
        order_id = self._order_id(answer) if status == 202 else ""
        record = {"kind": "answer", "at": _now(), **about, "status": status, "order_id": order_id}
        self._log.write({**record, "answer_sha256": _sha256(answer)})
        return status, order_id

    def _order_id(self, answer: bytes) -> str:
        try:
            return self._answers.decode(answer).order_id
        except msgspec.DecodeError:
            return ""


def _sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def _now() -> datetime:
    return datetime.now(UTC)
