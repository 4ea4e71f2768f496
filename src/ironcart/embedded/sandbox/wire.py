"""One request and one answer, as the sandbox sees them between the socket and the routes."""

import msgspec


class Request(msgspec.Struct, frozen=True):
    """One HTTP request: `path` unquoted, `key` from its Idempotency-Key header."""

    method: str
    path: str
    query: bytes
    body: bytes
    authorization: str
    key: str | None


class Answer(msgspec.Struct, frozen=True):
    """Status and JSON body of one answer; `replayed` when a saved one is given again."""

    status: int
    body: bytes
    replayed: bool = False
