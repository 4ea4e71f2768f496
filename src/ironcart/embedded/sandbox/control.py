"""The /sandbox/* routes: faults to set, the truth to read. No fault ever hits them."""

import time
from typing import Any
from urllib.parse import parse_qs

import msgspec

from ironcart.embedded.sandbox.book import Book
from ironcart.embedded.sandbox.faults import Faults, InvalidFaultError, parse_fault
from ironcart.embedded.sandbox.mailbox import Mailbox
from ironcart.embedded.sandbox.records import Intent
from ironcart.embedded.sandbox.webhooks import InvalidEndpointError, Webhooks, parse_endpoint
from ironcart.embedded.sandbox.wire import Answer, Request

PREFIX = "/sandbox/"


class Control:
    """Answers for the operator and for the tests."""

    def __init__(self, book: Book, mailbox: Mailbox, faults: Faults, webhooks: Webhooks) -> None:
        self._book = book
        self._mailbox = mailbox
        self._faults = faults
        self._webhooks = webhooks

    def answer(self, request: Request) -> Answer:
        """Answer one request, whose path begins with /sandbox/."""
        route = request.path.removeprefix(PREFIX)
        try:
            if request.method == "GET":
                return self._read(route, request.query)
            return self._write(request.method, route, request.body)
        except (InvalidFaultError, InvalidEndpointError) as error:
            return _answer({"error": str(error)}, 400)

    def _read(self, route: str, query: bytes) -> Answer:
        order_id = parse_qs(query.decode("latin-1")).get("order_id", [None])[0]
        if route == "charges":
            return _answer([_charge(intent) for intent in self._charges(order_id)])
        if route == "mail":
            return _answer(self._mailbox.list(order_id))
        if route.startswith("mail/"):
            return self._mail(route.removeprefix("mail/"))
        if route == "faults":
            return _answer(self._faults.report())
        if route == "webhooks":
            return _answer([{"url": endpoint.url} for endpoint in self._webhooks.endpoints])
        return _no_route("GET", route)

    def _write(self, method: str, route: str, body: bytes) -> Answer:
        match method, route:
            case "POST", "faults":
                self._faults.set(parse_fault(body))
                return _answer(self._faults.report())
            case "DELETE", "faults":
                self._faults.clear()
                return _answer(self._faults.report())
            case "POST", "keys/expire":
                return _answer({"expired": self._book.expire_keys(time.time())})
            case "POST", "webhooks":
                endpoint = parse_endpoint(body)
                self._webhooks.register(endpoint)
                return _answer({"url": endpoint.url})
            case "DELETE", "webhooks":
                self._webhooks.clear()
                return _answer([])
            case _:
                return _no_route(method, route)

    def _mail(self, message_id: str) -> Answer:
        mail = self._mailbox.read(message_id)
        if mail is None:
            return _answer({"error": f"no mail with the message id {message_id!r}"}, 404)
        return _answer(mail)

    def _charges(self, order_id: str | None) -> list[Intent]:
        intents = self._book.ledger.intents()
        if order_id is None:
            return intents
        return [intent for intent in intents if intent.metadata.get("order_id") == order_id]


def _charge(intent: Intent) -> dict[str, Any]:
    return {
        "id": intent.id,
        "order_id": intent.metadata.get("order_id"),
        "amount": intent.amount,
        "currency": intent.currency,
        "captured": intent.captured,
        "refunded": intent.refunded,
        "keys": intent.keys,
        "status": intent.status,
    }


def _answer(body: Any, status: int = 200) -> Answer:
    return Answer(status, msgspec.json.encode(body))


def _no_route(method: str, route: str) -> Answer:
    return _answer({"error": f"no such route: {method} {PREFIX}{route}"}, 404)
