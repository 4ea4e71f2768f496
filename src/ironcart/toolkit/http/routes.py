"""Endpoints, and what their handlers read of a request and answer with."""

import base64
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from litestar import Request, Response
from litestar.datastructures import MultiDict

from ironcart.toolkit import telemetry
from ironcart.toolkit.envelope import NAME_PATTERN, decode_json, encode_json
from ironcart.toolkit.http.access import Caller, Pass, Scope
from ironcart.toolkit.http.access.gate import Ticket
from ironcart.toolkit.http.documents import Operation, Parameter
from ironcart.toolkit.http.problems import Fault, Problem

BODY_BYTES_MAX = 64 * 1024
PAGE_ITEMS_DEFAULT = 50
PAGE_ITEMS_MAX = 500
JSON_TYPE = "application/json"
CURSOR_PATTERN = r"^[A-Za-z0-9_-]{2,1024}={0,2}\Z"
PAGING = (
    Parameter(
        "limit",
        "query",
        f"items a page, by default {PAGE_ITEMS_DEFAULT}",
        {"type": "integer", "minimum": 1, "maximum": PAGE_ITEMS_MAX},
    ),
    Parameter(
        "cursor",
        "query",
        "next_cursor of the page before",
        {"type": "string", "pattern": CURSOR_PATTERN},
    ),
)

# Where a request keeps what it was let in with, and what writes an answer at once.
PASS = "ironcart_pass"  # noqa: S105 - the name of a place
AT_ONCE = "ironcart_at_once"

S = TypeVar("S")

Answer = Response[Any]


class Call:
    """One request, as far as handlers read it: Litestar's own costs more than most of them do.

    `headers` are named in small letters, and have the first value of each.
    """

    __slots__ = ("_body", "_receive", "headers", "scope")

    def __init__(self, scope: Any, receive: Any = None) -> None:
        self.scope, self._receive = scope, receive
        self.headers: dict[str, str] = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in reversed(scope["headers"])
        }
        self._body: bytes | None = None

    def all_of(self, name: str) -> list[str]:
        """Every value of a header that may be repeated, in order."""
        if name not in self.headers:
            return []
        wanted = name.encode("latin-1")
        return [value.decode("latin-1") for key, value in self.scope["headers"] if key == wanted]

    @property
    def path_params(self) -> dict[str, str]:
        """The parameters of the path, by name."""
        found: dict[str, str] = self.scope["path_params"]
        return found

    @property
    def query_params(self) -> MultiDict[Any]:
        """The parameters of the query, by name."""
        return Request(self.scope).query_params

    @property
    def caller(self) -> Caller:
        """Who calls; `ANONYMOUS`, who may do everything, while authentication is off."""
        return _pass(self.scope).caller

    def still_allowed(self) -> bool:
        """Whether who calls would be let in still: a key may be revoked, a token may expire."""
        return _pass(self.scope).good()

    async def body(self) -> bytes:
        """Read the body whole; raises a `Problem` when it is too large, or breaks off."""
        if self._body is None:
            body, more = b"", True
            while more:
                message = await self._receive()
                if message["type"] == "http.disconnect":
                    raise Problem(400, "the request broke off")
                body += message.get("body", b"")
                if len(body) > BODY_BYTES_MAX:
                    raise Problem(413, f"send at most {BODY_BYTES_MAX} bytes")
                more = message.get("more_body", False)
            self._body = body
        return self._body


EndpointHandler = Callable[[Call], Awaitable[Answer]]


# Told who calls; lets one request in, and counts it until it leaves, or says why not.
Door = Callable[[str], Ticket | Problem]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One route; `path` as in OpenAPI (`/orders/{order_id}`), parameters are strings.

    A `door` is asked before anything of the request is read; only a path without parameters has
    one. `allows` is the scope that is needed, operators have them all; None lets everybody in.
    """

    method: str
    path: str
    handler: EndpointHandler
    operation: Operation | None = None
    door: Door | None = None
    allows: Scope | None = Scope.OPERATOR


def json_response(
    body: Any, status: int = 200, headers: dict[str, str] | None = None
) -> Response[bytes]:
    """Answer with a struct, or with bytes that are JSON already."""
    encoded = body if isinstance(body, bytes) else encode_json(body)
    return Response(encoded, status_code=status, media_type=JSON_TYPE, headers=headers or {})


async def json_body(request: Call) -> bytes:
    """Read a JSON body; raises a `Problem` when it is said to be something else."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != JSON_TYPE:
        raise Problem(415, "send Content-Type: application/json")
    # A small body that unpacks to a large one is refused with everything else that is packed.
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise Problem(415, "send the body as it is, without Content-Encoding")
    return await request.body()


async def read_struct(request: Call, kind: type[S]) -> S:
    """Read a JSON body into a struct; raises a `Problem` that points at what is wrong."""
    try:
        return decode_json(kind, await json_body(request))
    except msgspec.ValidationError as error:
        detail, _, path = str(error).partition(" - at `$")
        pointer = re.sub(r"[.\[]", "/", path.rstrip("`")).replace("]", "")
        raise Problem(400, "the body is not valid", faults=[Fault(pointer, detail)]) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(400, f"the body is not JSON: {error}") from error


def leave_early(request: Call) -> None:
    """Let another request in through this one's door, before this one has its answer."""
    if (ticket := _pass(request.scope).ticket) is not None:
        ticket.leave()


def _pass(scope: Any) -> Pass:
    found: Pass = scope[PASS]
    return found


def read_name(request: Call, parameter: str) -> str:
    """Read a path parameter that is an id or a SKU; raises a `Problem` when it cannot be one."""
    value = request.path_params[parameter]
    if not re.match(NAME_PATTERN, value):
        fault = Fault(f"/{parameter}", "use 1 to 64 of A-Z a-z 0-9 . _ -")
        raise Problem(400, f"{parameter} is not valid", faults=[fault])
    return value


def read_limit(request: Call) -> int:
    """Read `?limit=`: 1 to `PAGE_ITEMS_MAX`, by default `PAGE_ITEMS_DEFAULT`."""
    text = request.query_params.get("limit")
    if text is None:
        return PAGE_ITEMS_DEFAULT
    if not re.fullmatch("[0-9]{1,4}", text) or not 1 <= int(text) <= PAGE_ITEMS_MAX:
        fault = Fault("/limit", f"use a whole number from 1 to {PAGE_ITEMS_MAX}")
        raise Problem(400, "limit is not valid", faults=[fault])
    return int(text)


def read_cursor(request: Call, kind: type[S]) -> S | None:
    """Read `?cursor=` as a page before this one gave it; None when there is none."""
    text = request.query_params.get("cursor")
    if text is None:
        return None
    try:
        if not re.match(CURSOR_PATTERN, text):
            raise ValueError("not base64")
        return msgspec.json.decode(base64.urlsafe_b64decode(text), type=kind)
    except (ValueError, msgspec.MsgspecError) as error:
        fault = Fault("/cursor", "use next_cursor of the page before, as it was given")
        raise Problem(400, "cursor is not valid", faults=[fault]) from error


def write_cursor(position: msgspec.Struct) -> str:
    """Write where a page ended, for the caller to give back."""
    return base64.urlsafe_b64encode(msgspec.json.encode(position)).decode()


def trace_of(request: Call) -> telemetry.TraceContext:
    """The trace that this request belongs to."""
    context: telemetry.TraceContext = request.scope["ironcart_trace"]
    return context
