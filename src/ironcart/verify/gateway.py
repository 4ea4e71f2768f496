"""Reading the payment gateway's ledger and the mailbox from the sandbox."""

from typing import Any

import aiohttp

from ironcart.verify.facts import CannotReadError, Charge
from ironcart.verify.wire import loads

TIMEOUT_S = 60.0


async def read_charges(url: str) -> list[Charge]:
    """Return every intent the gateway knows; raises `CannotReadError`."""
    return [
        Charge(
            id=entry["id"],
            order_id=entry["order_id"] or "",
            amount=entry["amount"],
            currency=entry["currency"].upper(),
            captured=entry["captured"],
            refunded=entry["refunded"],
        )
        for entry in await _get(f"{url}/sandbox/charges", ("id", "order_id", "currency"))
    ]


async def read_mail(url: str) -> dict[str, list[str]]:
    """Return the message ids of every copy in the mailbox, by order; raises `CannotReadError`."""
    mail: dict[str, list[str]] = {}
    for entry in await _get(f"{url}/sandbox/mail", ("message_id", "order_id")):
        message_id = str(entry["message_id"]).strip("<>")
        mail.setdefault(entry["order_id"] or "", []).append(message_id)
    return mail


async def _get(url: str, fields: tuple[str, ...]) -> list[dict[str, Any]]:
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)) as session,
            session.get(url) as response,
        ):
            body = await response.read()
            if response.status != 200:
                raise CannotReadError(f"{url} answered {response.status}")
        entries = loads(body)
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
        raise CannotReadError(f"{url}: {error!r}") from None
    if not isinstance(entries, list) or any(
        not isinstance(entry, dict) or any(field not in entry for field in fields)
        for entry in entries
    ):
        raise CannotReadError(f"{url} answered something else than a list of records")
    return entries
