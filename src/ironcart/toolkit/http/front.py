"""The app: every route's handler wrapped in what all have (access, trace, metric, problems)."""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog
from litestar import Litestar, Request, Response
from litestar.exceptions import HTTPException
from litestar.handlers import HTTPRouteHandler
from litestar.response import Stream
from opentelemetry.trace import SpanKind
from prometheus_client import Histogram

from ironcart.toolkit import telemetry
from ironcart.toolkit.envelope import encode_json
from ironcart.toolkit.http.access import Gate, Pass, Scope
from ironcart.toolkit.http.access.gate import OFF, OPEN, Headers, lacking
from ironcart.toolkit.http.documents import document
from ironcart.toolkit.http.problems import PROBLEM_TYPE, Problem, retry_after
from ironcart.toolkit.http.routes import (
    AT_ONCE,
    JSON_TYPE,
    PASS,
    Answer,
    Call,
    Door,
    Endpoint,
    EndpointHandler,
    json_response,
)
from ironcart.toolkit.outcomes import Unavailable

RETRY_AFTER_S = 1
# As nearly all are written; any other host is Litestar's to judge.
_USUAL_HOST = re.compile(rb"[A-Za-z0-9.:\[\]-]*\Z")
_SLASHES = re.compile("//+")

_Request = Request[Any, Any, Any]
Route = tuple[str, str]


def application(
    service: str,
    version: str,
    endpoints: Sequence[Endpoint],
    tracing: telemetry.Tracing,
    gate: Gate | None = None,
) -> "Front":
    """Build the ASGI app; every error it answers is a problem. Without a gate all may come in."""
    documented = [
        (e.method, e.path, e.operation, None if gate is None else e.allows)
        for e in endpoints
        if e.operation
    ]
    described = encode_json(document(service, version, documented))

    async def openapi(_: Call) -> Answer:
        return json_response(described)

    reading = Endpoint("GET", "/openapi.json", openapi, allows=Scope.STOREFRONT)
    everything = [*endpoints, reading]
    handlers = [(each, _handler(each, tracing)) for each in everything]
    app = Litestar(
        route_handlers=[*_options(everything), *(_routed(*each) for each in handlers)],
        openapi_config=None,
        exception_handlers={Exception: _answer_problem},
        logging_config=None,
    )
    plain = {(e.method, e.path): handler for e, handler in handlers if "{" not in e.path}
    return Front(app, everything, plain, gate)


class Front:
    """An app with a gate and doors: whom they refuse costs no routing, no trace and no body.

    A `plain` path has no parameters: asked for to the letter, its handler is called at once, and
    answers as it would through the app's own routing, which costs more than most handlers do.
    """

    def __init__(
        self,
        app: Litestar,
        endpoints: Sequence[Endpoint],
        plain: Mapping[Route, EndpointHandler],
        gate: Gate | None,
    ) -> None:
        self._app, self._plain, self._gate = app, plain, gate
        fixed = [each for each in endpoints if "{" not in each.path]
        self._doors: Mapping[Route, Door] = {
            (each.method, each.path): each.door for each in fixed if each.door is not None
        }
        # Of other paths routing finds out what they need; whoever comes in needs a key for it.
        self._needs = {(m, each.path): each.allows for each in fixed for m in _methods(each)}

    def enter(
        self, method: str, path: str, headers: Headers, address: str, *, last: bool = False
    ) -> Pass | Problem | None:
        """Ask at the gate, then at the path's door; slashes too many make no difference.

        None: only the app can tell, for it can wait.
        """
        if "//" in path:  # Litestar takes them for one.
            path = _SLASHES.sub("/", path)
        route = (method, path.rstrip("/"))
        door = self._doors.get(route)
        if self._gate is None:
            return OFF if door is None else self._through(door, route, address, Pass(OFF.caller))
        needed = self._needs.get(route, Scope.STOREFRONT)
        if needed is None:
            return OPEN
        found = self._gate.judge(headers, address, last=last)
        if door is None or not isinstance(found, Pass):
            return found
        return lacking(found.caller, needed) or self._through(door, route, found.caller.id, found)

    def _through(self, door: Door, route: Route, caller: str, passed: Pass) -> Pass | Problem:
        found = door(caller)
        if isinstance(found, Problem):
            telemetry.http_seconds.labels(*route, found.status).observe(0)
            return found
        passed.ticket = found
        return passed

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request, as ASGI has it; the server may have asked at the gate already."""
        if PASS not in scope:
            scope[PASS] = await self._pass(scope)
        passed = scope[PASS]
        if isinstance(passed, Problem):
            named = [(k.encode(), v.encode()) for k, v in passed.all_headers().items()]
            await send({"type": "http.response.start", "status": passed.status, "headers": named})
            await send({"type": "http.response.body", "body": passed.body()})
            return
        if passed.bucket is not None:
            send = _telling(passed.bucket.headers, send)
        try:
            handler = self._plain.get((scope["method"], scope["path"]))
            host = next((value for name, value in scope["headers"] if name == b"host"), b"")
            if handler is not None and _USUAL_HOST.match(host):
                await _answer(handler, scope, receive, send)
            else:
                await self._app(scope, receive, send)
        finally:
            if passed.ticket is not None:
                passed.ticket.leave()

    async def _pass(self, scope: Any) -> Pass | Problem:
        address = scope["client"][0] if scope.get("client") else ""
        asking = scope["method"], scope["path"], scope["headers"], address
        found = self.enter(*asking)
        if found is None and self._gate is not None:
            await self._gate.settled()
            found = self.enter(*asking, last=True)
        return found or as_problem(Unavailable("who calls is not known yet"))


def _telling(headers: Callable[[], Headers], send: Any) -> Any:
    """Send with what is left to the caller."""

    async def told(message: Any) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], *headers()]
        await send(message)

    return told


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
    bucket, at_once = scope[PASS].bucket, scope.get(AT_ONCE)
    left = [] if bucket is None else bucket.headers()
    if at_once is None or not at_once(scope, status, [*headers, *left], body):
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
    took: dict[int, Histogram] = {}  # By status: looking a label up costs more than counting.

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
            if (refusal := lacking(request.caller, endpoint.allows)) is not None:
                raise refusal
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
            if status not in took:
                labels = endpoint.method, endpoint.path, status
                took[status] = telemetry.http_seconds.labels(*labels)
            took[status].observe(seconds)
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
