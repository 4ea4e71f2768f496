"""One trace across two services: over HTTP, through the history and the broker, and back."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from heart_parts import TRACE_ID, Bench, bench, kept, make_schema, until
from heart_processes import Running, environment, process
from ironcart.embedded.nats_server import NatsServer

CALLER = "b7ad6b7169203331"


@dataclass(frozen=True)
class Span:
    service: str
    name: str
    trace_id: str
    id: str
    parent: str


@dataclass
class Collector:
    """A tiny OTLP/HTTP receiver."""

    url: str = ""
    spans: list[Span] = field(default_factory=list)

    async def receive(self, request: web.Request) -> web.Response:
        found = ExportTraceServiceRequest.FromString(await request.read())
        for each in found.resource_spans:
            named = {a.key: a.value.string_value for a in each.resource.attributes}
            for scope in each.scope_spans:
                self.spans += [
                    Span(
                        named["service.name"],
                        span.name,
                        span.trace_id.hex(),
                        span.span_id.hex(),
                        span.parent_span_id.hex(),
                    )
                    for span in scope.spans
                ]
        body = ExportTraceServiceResponse().SerializeToString()
        return web.Response(body=body, content_type="application/x-protobuf")

    def of(self, trace_id: str) -> dict[tuple[str, str], Span]:
        return {(s.service, s.name): s for s in self.spans if s.trace_id == trace_id}


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    collector = Collector()
    app = web.Application()
    app.router.add_post("/v1/traces", collector.receive)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        port = runner.addresses[0][1]
        collector.url = f"http://127.0.0.1:{port}"
        yield collector
    finally:
        await runner.cleanup()


@asynccontextmanager
async def alpha_and_beta(
    broker: NatsServer, database_url: str, folder: Path, telemetry: dict[str, str]
) -> AsyncIterator[tuple[Bench, Running]]:
    async with bench(broker.url, database_url) as parts:
        await make_schema(database_url, "alpha")
        first, second = (environment(broker, database_url) | telemetry for _ in range(2))
        async with (
            process("alpha", parts.topology, first, folder) as alpha,
            process("beta", parts.topology, second, folder) as beta,
        ):
            await alpha.until_ready()
            await beta.until_ready()
            yield parts, alpha


async def say(alpha: Running, headers: dict[str, str], n: int) -> None:
    async with alpha.http.post(
        f"{alpha.url}/pings", json={"name": "a", "n": n}, headers=headers
    ) as answer:
        assert answer.status == 202


async def test_the_spans_of_both_services_form_one_chain_under_the_events_trace(
    broker: NatsServer, database_url: str, tmp_path: Path
) -> None:
    async with collecting() as collector:
        telemetry = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_TRACES_SAMPLER_ARG": "1.0",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }
        async with alpha_and_beta(broker, database_url, tmp_path, telemetry) as (parts, alpha):
            asked = {"traceparent": f"00-{TRACE_ID}-{CALLER}-01", "tracestate": "heart=1"}
            await say(alpha, asked, 1)
            await say(alpha, {}, 2)  # A trace of its own.
            first, second = await parts.ponged(2)
            assert first.event["trace_id"] == TRACE_ID
            assert first.headers["tracestate"] == "heart=1"
            assert second.event["trace_id"] != TRACE_ID
            names = (
                ("alpha", "POST /pings"),
                ("beta", f"process {parts.topology.subjects['Ping']}"),
                ("alpha", f"process {parts.topology.subjects['Pong']}"),
            )

            async def complete() -> Any:
                traces = [collector.of(each.event["trace_id"]) for each in (first, second)]
                return all(set(names) <= set(trace) for trace in traces)

            await until(complete)
            for pong in (first, second):
                found = collector.of(pong.event["trace_id"])
                post, ping, heard = (found[name] for name in names)
                assert ping.parent == post.id
                assert heard.parent == ping.id
                # What travels names the span in which it came about.
                assert pong.headers["traceparent"].split("-")[2] == ping.id
            assert collector.of(TRACE_ID)[names[0]].parent == CALLER


async def test_without_a_collector_the_context_travels_all_the_same(
    broker: NatsServer, database_url: str, tmp_path: Path
) -> None:
    async with alpha_and_beta(broker, database_url, tmp_path, {}) as (parts, alpha):
        asked = {"traceparent": f"00-{TRACE_ID}-{CALLER}-01", "tracestate": "heart=1"}
        await say(alpha, asked, 1)
        (pong,) = await parts.ponged(1)
        (ping,) = await kept(parts.broker, parts.topology.pings.name)

    for each in (ping, pong):
        assert each.event["trace_id"] == TRACE_ID
        assert each.headers["traceparent"] == asked["traceparent"]
        assert each.headers["tracestate"] == "heart=1"
    logged = [line for line in alpha.lines() if line.get("event_type") == "Ping"]
    assert [line["trace_id"] for line in logged] == [TRACE_ID]
