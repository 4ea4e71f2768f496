"""Endpoints: a handler wrapped in what every route has (trace, metric, problems), in one app."""

import base64
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

import msgspec
import structlog
from litestar import Litestar, Request, Response
from litestar.datastructures import Headers, MultiDict
from litestar.exceptions import HTTPException
from litestar.handlers import HTTPRouteHandler
from litestar.response import Stream
from opentelemetry.trace import SpanKind

from ironcart.toolkit import telemetry
from ironcart.toolkit.envelope import NAME_PATTERN, decode_json, encode_json
from ironcart.toolkit.http.documents import Operation, Parameter, document
from ironcart.toolkit.http.problems import PROBLEM_TYPE, Fault, Problem, retry_after
from ironcart.toolkit.outcomes import Unavailable

BODY_BYTES_MAX = 64 * 1024
PAGE_ITEMS_DEFAULT = 50
PAGE_ITEMS_MAX = 500
RETRY_AFTER_S = 1
JSON_TYPE = "application/json"
# As nearly all are written; any other host is Litestar's to judge.
_USUAL_HOST = re.compile(rb"[A-Za-z0-9.:\[\]-]*\Z")
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

# Where a request keeps what its door gave it.
TICKET = "ironcart_ticket"

S = TypeVar("S")

Answer = Response[Any]
_Request = Request[Any, Any, Any]


class Call:
    """One request, as far as handlers read it: Litestar's own costs more than most of them do."""

    __slots__ = ("_body", "_receive", "headers", "scope")

    def __init__(self, scope: Any, receive: Any = None) -> None:
        self.scope, self._receive = scope, receive
        self.headers = Headers(scope["headers"])
        self._body: bytes | None = None

    @property
    def path_params(self) -> dict[str, str]:
        """The parameters of the path, by name."""
        found: dict[str, str] = self.scope["path_params"]
        return found

    @property
    def query_params(self) -> MultiDict[Any]:
        """The parameters of the query, by name."""
        return Request(self.scope).query_params

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


class Ticket(Protocol):
    """The leave to come in that a door gives."""

    def leave(self) -> None:
        """Be no longer counted as inside; may be called again."""


# Told who calls; lets one request in, and counts it until it leaves, or says why not.
Door = Callable[[str], Ticket | Problem]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One route; `path` as in OpenAPI (`/orders/{order_id}`), parameters are strings.

    A `door` is asked before anything of the request is read; only a path without parameters has
    one.
    """

    method: str
    path: str
    handler: EndpointHandler
    operation: Operation | None = None
    door: Door | None = None


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
    if (ticket := request.scope.get(TICKET)) is not None:
        cast("Ticket", ticket).leave()


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


def application(
    service: str, version: str, endpoints: Sequence[Endpoint], tracing: telemetry.Tracing
) -> "Front":
    """Build the ASGI app; every error it answers is a problem."""
    documented = [(e.method, e.path, e.operation) for e in endpoints if e.operation]
    described = encode_json(document(service, version, documented))

    async def openapi(_: Call) -> Answer:
        return json_response(described)

    everything = [*endpoints, Endpoint("GET", "/openapi.json", openapi)]
    handlers = [(each, _handler(each, tracing)) for each in everything]
    app = Litestar(
        route_handlers=[*_options(everything), *(_routed(*each) for each in handlers)],
        openapi_config=None,
        exception_handlers={Exception: _answer_problem},
        logging_config=None,
    )
    doors = {(e.method, e.path): e.door for e in endpoints if e.door is not None}
    plain = {(e.method, e.path): handler for e, handler in handlers if "{" not in e.path}
    return Front(app, doors, plain)


class Front:
    """An app with doors: what they refuse costs neither routing, nor a trace, nor a body.

    A `plain` path has no parameters: asked for to the letter, its handler is called at once, and
    answers as it would through the app's own routing, which costs more than most handlers do.
    """

    def __init__(
        self,
        app: Litestar,
        doors: Mapping[tuple[str, str], Door],
        plain: Mapping[tuple[str, str], EndpointHandler],
    ) -> None:
        self._app, self._doors, self._plain = app, doors, plain

    def enter(self, method: str, path: str, caller: str) -> Ticket | Problem | None:
        """Ask at a path's door, if it has one; a slash at the end makes no difference."""
        path = path.rstrip("/")
        door = self._doors.get((method, path))
        if door is None:
            return None
        found = door(caller)
        if isinstance(found, Problem):
            telemetry.http_seconds.labels(method, path, found.status).observe(0)
        return found

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request, as ASGI has it; the server may have asked at the door already."""
        if TICKET not in scope:
            caller = scope["client"][0] if scope.get("client") else ""
            scope[TICKET] = self.enter(scope["method"], scope["path"], caller)
        ticket = scope[TICKET]
        if isinstance(ticket, Problem):
            named = [(k.encode(), v.encode()) for k, v in ticket.all_headers().items()]
            await send({"type": "http.response.start", "status": ticket.status, "headers": named})
            await send({"type": "http.response.body", "body": ticket.body()})
            return
        try:
            handler = self._plain.get((scope["method"], scope["path"]))
            host = next((value for name, value in scope["headers"] if name == b"host"), b"")
            if handler is not None and _USUAL_HOST.match(host):
                await _answer(handler, scope, receive, send)
            else:
                await self._app(scope, receive, send)
        finally:
            if ticket is not None:
                ticket.leave()


async def _answer(handler: EndpointHandler, scope: Any, receive: Any, send: Any) -> None:
    """Answer as Litestar would; what is not JSON it writes itself."""
    try:
        answer = await handler(Call(scope, receive))
    except Problem as problem:
        answer = problem.response()
    body, kind = answer.content, answer.media_type
    if not isinstance(body, bytes) or kind not in (JSON_TYPE, PROBLEM_TYPE):
        await answer.to_asgi_response(None, Request(scope))(scope, receive, send)
        return
    named = {**answer.headers, "content-type": kind, "content-length": str(len(body))}
    headers = [(key.lower().encode(), value.encode("latin-1")) for key, value in named.items()]
    status = answer.status_code
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _options(endpoints: Sequence[Endpoint]) -> list[HTTPRouteHandler]:
    """Answer OPTIONS with every method of a path: Litestar's own knows only the first handler's."""
    allowed: dict[str, list[str]] = {}
    for endpoint in endpoints:
        allowed.setdefault(endpoint.path, ["OPTIONS"]).extend(_methods(endpoint))
    return [_options_handler(path, ", ".join(sorted(m))) for path, m in allowed.items()]


def _options_handler(path: str, allow: str) -> HTTPRouteHandler:
    async def options() -> Response[None]:
        return Response(None, status_code=204, headers={"Allow": allow})

    return HTTPRouteHandler(_path(path), http_method="OPTIONS")(options)


def _methods(endpoint: Endpoint) -> list[str]:
    return ["GET", "HEAD"] if endpoint.method == "GET" else [endpoint.method]


def _path(path: str) -> str:
    return re.sub(r"\{(\w+)\}", r"{\1:str}", path)


def _handler(endpoint: Endpoint, tracing: telemetry.Tracing) -> EndpointHandler:
    """A route's handler with its trace and its metric; all that it raises is a `Problem`."""

    async def handle(request: Call) -> Answer:
        started = time.monotonic()
        status = 500
        parent = telemetry.context(request.headers)
        span, inside = tracing.start(
            f"{endpoint.method} {endpoint.path}",
            SpanKind.SERVER,
            parent,
            http__request__method=endpoint.method,
            http__route=endpoint.path,
        )
        request.scope["ironcart_trace"] = inside
        try:
            answer = await endpoint.handler(request)
            status = answer.status_code or 200
            if isinstance(answer, Stream) and request.scope["method"] == "HEAD":
                answer = Response(b"", media_type=answer.media_type, headers=answer.headers)
        except Exception as error:
            problem = as_problem(error)
            status = problem.status
            raise problem from error
        else:
            return answer
        finally:
            seconds = time.monotonic() - started
            telemetry.http_seconds.labels(endpoint.method, endpoint.path, status).observe(seconds)
            if span is not None:
                span.set_attribute("http.response.status_code", status)
                span.end()

    return handle


def _routed(endpoint: Endpoint, handler: EndpointHandler) -> HTTPRouteHandler:
    async def handle(request: _Request) -> Answer:
        return await handler(Call(request.scope, request.receive))

    handle.__name__ = endpoint.handler.__name__
    methods: Any = _methods(endpoint)
    # Every answer says its own status; Litestar's default for DELETE allows none with a body.
    default = 200 if endpoint.method == "DELETE" else None
    return HTTPRouteHandler(_path(endpoint.path), http_method=methods, status_code=default)(handle)


def as_problem(error: Exception) -> Problem:
    """Say an error in HTTP; a bug is logged and says nothing about itself."""
    match error:
        case Problem():
            return error
        case Unavailable():
            return Problem(
                503,
                "not now; send the same request again, with the same Idempotency-Key",
                headers=retry_after(error.retry_after_s or RETRY_AFTER_S),
            )
        case HTTPException():
            detail = error.detail if error.status_code < 500 else "something went wrong here"
            return Problem(error.status_code, detail, headers=dict(error.headers or {}))
    structlog.get_logger().error("A request failed", exc_info=error)
    return Problem(500, "something went wrong here; it is in the logs")


def _answer_problem(_: _Request, error: Exception) -> Answer:
    return as_problem(error).response()
