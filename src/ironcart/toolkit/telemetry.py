"""Logs, metrics and traces: one JSON object a line, `ironcart_` metrics, W3C context end to end.

Without `OTEL_EXPORTER_OTLP_ENDPOINT` no span is recorded, yet every event still carries the
context that it came with, so a trace can be joined by any collector that joins later.
"""

import hashlib
import json
import logging
import re
import secrets
import sys
import traceback
from collections.abc import Mapping
from typing import Any, cast

import msgspec
import structlog
from msgspec import Struct
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from prometheus_client import Counter, Gauge, Histogram

SAMPLE_RATIO_DEFAULT = 0.1
FRAMES_LOGGED_MAX = 4
TRACESTATE_CHARACTERS_MAX = 512
_TRACEPARENT = re.compile(r"^[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})\Z")
# As W3C has it, but for an @ in what is said: nobody's mail address travels with our events.
_TRACESTATE_MEMBER = re.compile(
    r"^ *[a-z0-9][a-z0-9_\-*/]{0,240}(@[a-z][a-z0-9_\-*/]{0,13})?"
    r"=(?!.*%40)[ -+\--<>?A-~]{0,255}[!-+\--<>?A-~] *\Z"
)
_TRACE_ID = re.compile(r"^[0-9a-f]{32}\Z")
_FAST_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)

published = Counter("ironcart_events_published_total", "events the broker took", ["type"])
consumed = Counter("ironcart_events_consumed_total", "messages dealt with", ["consumer", "type"])
outcomes = Counter("ironcart_outcomes_total", "what became of messages", ["consumer", "outcome"])
batch_size = Histogram(
    "ironcart_batch_size_messages",
    "messages a batch",
    ["consumer"],
    buckets=[4**n for n in range(7)],
)
handling = Histogram(
    "ironcart_handling_seconds", "one batch, taken to committed", ["consumer"], buckets=_FAST_S
)
lag = Gauge("ironcart_consumer_lag_messages", "not yet acknowledged", ["consumer", "stream"])
oldest = Gauge(
    "ironcart_consumer_oldest_seconds", "age of the oldest message in hand", ["consumer", "stream"]
)
outbox_age = Gauge("ironcart_outbox_oldest_seconds", "age of the oldest unpublished event")
outbox_waiting = Gauge("ironcart_outbox_waiting_batches", "commits not yet published")
breaker_state = Gauge("ironcart_breaker_state", "1 for the state it is in", ["breaker", "state"])
dead_letters = Counter("ironcart_dead_letters_total", "messages parked", ["consumer", "type"])
parked = Gauge("ironcart_parked", "messages set aside that wait for a person")
waiting_behind = Gauge("ironcart_waiting_behind", "messages that wait behind a parked one")
jobs_open = Gauge("ironcart_jobs_open", "jobs not yet settled")
jobs_due = Gauge("ironcart_jobs_due", "jobs whose time has come")
jobs_oldest = Gauge("ironcart_jobs_oldest_seconds", "age of the oldest open job")
http_seconds = Histogram(
    "ironcart_http_request_seconds", "HTTP requests", ["method", "route", "status"], buckets=_FAST_S
)
recovering = Gauge("ironcart_recovering", "1 while a restored database catches up")
http_connections = Gauge("ironcart_http_connections", "connections of callers")
http_refused = Counter(
    "ironcart_http_refused_total", "requests refused before an application saw them", ["status"]
)
broker_connected = Gauge("ironcart_broker_connected", "1 while JetStream is connected")
certificate_expires = Gauge(
    "ironcart_certificate_expires_seconds", "when our certificate ends, in seconds since 1970"
)
broker_forbidden = Counter(
    "ironcart_broker_forbidden_total", "what the broker refused for want of permission"
)
stream_fill = Gauge("ironcart_stream_fill_ratio", "bytes kept over max_bytes", ["stream"])
consumer_pending = Gauge(
    "jetstream_consumer_num_pending",
    "as prometheus-nats-exporter",
    ["stream_name", "consumer_name"],
)
consumer_ack_pending = Gauge(
    "jetstream_consumer_num_ack_pending",
    "as prometheus-nats-exporter",
    ["stream_name", "consumer_name"],
)


BREAKER_STATES = ("closed", "open", "half_open")


def watch_breaker(name: str, before: str, after: str) -> None:
    """Show a breaker's state, and say in the log when it changes: what a `Breaker` calls.

    Called once with `before` equal to `after` it shows where the breaker starts.
    """
    for state in BREAKER_STATES:
        breaker_state.labels(name, state).set(state == after)
    if before != after:
        log = structlog.get_logger()
        say = log.info if after == "closed" else log.warning
        say("Breaker changed", breaker=name, was=before, state=after)


class TraceContext(Struct, frozen=True):
    """Where in a trace something happens: what travels as `traceparent` and `tracestate`."""

    trace_id: str
    span_id: str
    sampled: bool = False
    state: str = ""

    @property
    def traceparent(self) -> str:
        """The W3C header."""
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"


def hex_trace_id(trace_id: str) -> str:
    """Return `trace_id` as the 32 hex digits that traces use; an odd one is hashed."""
    if _TRACE_ID.match(trace_id) and trace_id.strip("0"):
        return trace_id
    return hashlib.blake2b(trace_id.encode(), digest_size=16).hexdigest()


def _header(headers: Mapping[str, str], wanted: str) -> str:
    """Find a header as everybody writes it, or in other letters."""
    if (value := headers.get(wanted)) is not None:
        return value
    for name in headers:
        if len(name) == len(wanted) and name.lower() == wanted:
            return headers[name]
    return ""


def context(headers: Mapping[str, str], trace_id: str | None = None) -> TraceContext:
    """Read the context that came with a message or a request, or begin a new trace."""
    if match := _TRACEPARENT.match(_header(headers, "traceparent")):
        trace, span, flags = match.groups()
        if trace.strip("0") and span.strip("0"):
            sampled = bool(int(flags, 16) & 1)
            state = _header(headers, "tracestate")[:TRACESTATE_CHARACTERS_MAX]
            # Anything else is no tracestate, and not every header or column would take it.
            usable = ",".join(filter(_TRACESTATE_MEMBER.match, state.split(",")))
            return TraceContext(trace, span, sampled, usable)
    drawn = secrets.token_hex(24)
    return TraceContext(hex_trace_id(trace_id) if trace_id else drawn[16:], drawn[:16])


class Tracing:
    """Starts spans; records nothing and costs next to nothing unless OTLP export is configured."""

    def __init__(self, service: str, environ: Mapping[str, str]) -> None:
        self._provider: TracerProvider | None = None
        if environ.get("OTEL_EXPORTER_OTLP_ENDPOINT") and not environ.get("OTEL_SDK_DISABLED"):
            self._provider = _provider(service, environ)
            self._tracer = self._provider.get_tracer("ironcart")

    @property
    def on(self) -> bool:
        """Whether spans are recorded at all."""
        return self._provider is not None

    def start(
        self, name: str, kind: trace.SpanKind, parent: TraceContext, **attributes: str | int
    ) -> tuple[trace.Span | None, TraceContext]:
        """Begin a span below `parent`; returns it (None when off) and the context inside it.

        The caller ends the span. A parent that nobody recorded is a new root in the same trace.
        """
        if self._provider is None:
            return None, parent
        remote = trace.SpanContext(
            int(parent.trace_id, 16),
            int(parent.span_id, 16),
            is_remote=True,
            trace_flags=trace.TraceFlags(int(parent.sampled)),
            trace_state=trace.TraceState.from_header([parent.state]) if parent.state else None,
        )
        around = trace.set_span_in_context(trace.NonRecordingSpan(remote))
        named = {key.replace("__", "."): value for key, value in attributes.items()}
        span = self._tracer.start_span(name, around, kind, named)
        inside = span.get_span_context()
        return span, TraceContext(
            parent.trace_id, f"{inside.span_id:016x}", inside.trace_flags.sampled, parent.state
        )

    def close(self) -> None:
        """Export what is left, for at most a few seconds."""
        if self._provider is not None:
            self._provider.shutdown()


def _provider(service: str, environ: Mapping[str, str]) -> TracerProvider:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    resource = Resource.create({"service.name": service, "service.namespace": "ironcart"})
    if environ.get("OTEL_TRACES_SAMPLER"):
        provider = TracerProvider(resource=resource)
    else:
        ratio = float(environ.get("OTEL_TRACES_SAMPLER_ARG", SAMPLE_RATIO_DEFAULT))
        root = _SampleUndecided(ratio)
        provider = TracerProvider(resource=resource, sampler=root)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


class _SampleUndecided(ParentBased):
    """Parent-based ratio sampling in which every service agrees: the trace id alone decides for a
    parent that was not sampled, so a trace that begins outside any recorder is not cut short."""

    def __init__(self, ratio: float) -> None:
        by_ratio = TraceIdRatioBased(ratio)
        super().__init__(by_ratio, remote_parent_not_sampled=by_ratio)


def configure_logging(service: str, level: str) -> None:
    """Log one JSON object a line on standard error, for this process and the libraries in it."""
    number = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper("iso", utc=True, key="time"),
            structlog.processors.EventRenamer("msg"),
            _exception_in_one_field,
            _ServiceName(service),
            _render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.BytesLoggerFactory(sys.stderr.buffer),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(handlers=[_ToStructlog()], level=logging.WARNING, force=True)


class _ServiceName:
    """Puts the fields that every line has first, in one order."""

    def __init__(self, service: str) -> None:
        self._service = service

    def __call__(self, _logger: Any, _name: str, line: Any) -> Any:
        first = {"level": line.pop("level"), "time": line.pop("time"), "service": self._service}
        return first | {"msg": line.pop("msg")} | line


def _exception_in_one_field(_logger: Any, _name: str, line: Any) -> Any:
    info = line.pop("exc_info", None)
    error = info if isinstance(info, BaseException) else sys.exc_info()[1] if info else None
    if error is not None:
        frames = traceback.extract_tb(error.__traceback__)[-FRAMES_LOGGED_MAX:]
        line.setdefault("error", f"{type(error).__name__}: {error}")
        line["where"] = [f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}" for frame in frames]
    return line


def _render(_logger: Any, _name: str, line: Any) -> bytes:
    """One JSON object a line; what is logged `together` makes up a line each, in one write."""
    together = line.pop("together", None)
    if together is None:
        return _to_json(line)
    return b"\n".join([_to_json(line | each) for each in together])


def _to_json(line: Any) -> bytes:
    try:
        return msgspec.json.encode(line, enc_hook=str)
    except UnicodeEncodeError:  # A lone surrogate, from a foreign server's text say.
        return json.dumps(line, default=str).encode()


class _ToStructlog(logging.Handler):
    """Sends what libraries log through the same pipe; their texts may not name secrets of ours."""

    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger()
        cast(Any, log).log(
            record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info
        )
