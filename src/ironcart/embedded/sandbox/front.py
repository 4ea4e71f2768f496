"""The front door: which request goes where, and where the faults of the gateway strike."""

from typing import Literal

import msgspec

from ironcart.embedded.sandbox.control import PREFIX, Control
from ironcart.embedded.sandbox.faults import Faults
from ironcart.embedded.sandbox.stripe_api import StripeApi
from ironcart.embedded.sandbox.wire import Answer, Request

HEALTHY = Answer(200, b'{"status":"ok"}')
NOT_FOUND = Answer(404, b'{"error":"the sandbox serves /v1/*, /sandbox/* and /health"}')


class Reply(msgspec.Struct, frozen=True):
    """What happens on the connection: an answer after `delay_s`, a close or reset, or nothing."""

    how: Literal["answer", "close", "reset", "never"]
    answer: Answer = NOT_FOUND
    delay_s: float = 0.0


CLOSE = Reply("close")
RESET = Reply("reset")
NEVER = Reply("never")


class Front:
    """Decides on requests. /v1/* is under the faults; /sandbox/* and /health answer whatever.

    down and hang do not act; error does not act either (see Fault.begun); lose_response acts, then
    resets the connection; slow acts at once and answers late, its idempotency key in use till then.
    """

    def __init__(self, api: StripeApi, control: Control, faults: Faults) -> None:
        self._api = api
        self._control = control
        self._faults = faults

    def reply(self, request: Request) -> Reply:
        """Act on one request and say what to do on its connection."""
        path = request.path
        if path.startswith("/v1/"):
            return self._gateway(request)
        if path.startswith(PREFIX):
            return Reply("answer", self._control.answer(request))
        return Reply("answer", HEALTHY if path == "/health" else NOT_FOUND)

    def sent(self, request: Request) -> None:
        """The answer to a request of a delayed Reply is out, or will never be."""
        if request.key is not None:
            self._api.release_key(request.key)

    def _gateway(self, request: Request) -> Reply:
        faults = self._faults
        if faults.strikes("down"):
            return CLOSE
        if faults.strikes("hang"):
            return NEVER
        error = faults.strikes("error")
        if error:
            return Reply("answer", self._api.fail(request, begun=error.begun))
        answer = self._api.answer(request)
        if faults.strikes("lose_response"):
            return RESET
        slow = faults.strikes("slow")
        # A key that is already held is another request's; the answer just made says 409.
        late = slow and (request.key is None or self._api.hold_key(request.key))
        return Reply("answer", answer, slow.delay_s if slow and late else 0.0)
