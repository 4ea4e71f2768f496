"""Errors as RFC 9457 problems: what is wrong, where, and what to change."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus

import msgspec
from litestar import Response

PROBLEM_TYPE = "application/problem+json"


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

    def response(self) -> Response[bytes]:
        """The answer as it travels."""
        body = ProblemBody(
            HTTPStatus(self.status).phrase, self.status, self.detail, errors=self.faults
        )
        return Response(
            msgspec.json.encode(body),
            status_code=self.status,
            media_type=PROBLEM_TYPE,
            headers=self.headers,
        )
