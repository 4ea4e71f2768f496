"""Errors as RFC 9457 problems: what is wrong, where, and what to change."""

import math
import random
from collections.abc import Mapping, Sequence
from http import HTTPStatus

import msgspec
from litestar import Response

PROBLEM_TYPE = "application/problem+json"
RETRY_AFTER_S_MIN = 1
RETRY_AFTER_S_MAX = 30


class Fault(msgspec.Struct, frozen=True):
    """One thing that is wrong with a body: a JSON pointer to it, and what to change."""

    pointer: str
    detail: str


class ProblemBody(msgspec.Struct, frozen=True, omit_defaults=True):
    """The body of every error."""

    title: str
    status: int
    detail: str = ""
    type: str = "about:blank"
    errors: tuple[Fault, ...] = ()


class Problem(Exception):
    """An answer that is an error; raise it from a handler."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        faults: Sequence[Fault] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.detail = status, detail
        self.faults, self.headers = tuple(faults), dict(headers or {})

    def body(self) -> bytes:
        """The problem as JSON."""
        phrase = HTTPStatus(self.status).phrase
        return msgspec.json.encode(
            ProblemBody(phrase, self.status, self.detail, errors=self.faults)
        )

    def all_headers(self) -> dict[str, str]:
        """The headers that go with `body`."""
        size = str(len(self.body()))
        return {"Content-Type": PROBLEM_TYPE, "Content-Length": size} | self.headers

    def as_bytes(self, *, last: bool) -> bytes:
        """The answer as HTTP/1.1; the `last` one says that the connection ends with it."""
        headers = self.all_headers() | ({"Connection": "close"} if last else {})
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        phrase = HTTPStatus(self.status).phrase
        return f"HTTP/1.1 {self.status} {phrase}\r\n{lines}\r\n".encode() + self.body()

    def response(self) -> Response[bytes]:
        """The answer as it travels."""
        return Response(
            self.body(),
            status_code=self.status,
            media_type=PROBLEM_TYPE,
            headers=self.headers,
        )


def retry_after(expected_s: float) -> dict[str, str]:
    """Say when to come back: `expected_s` or up to twice that, so that not all come back at once.

    In whole seconds, `RETRY_AFTER_S_MIN` to `RETRY_AFTER_S_MAX`.
    """
    jittered = math.ceil(expected_s * random.uniform(1, 2))  # noqa: S311 - spreads load
    seconds = min(max(jittered, RETRY_AFTER_S_MIN), RETRY_AFTER_S_MAX)
    return {"Retry-After": str(seconds)}
