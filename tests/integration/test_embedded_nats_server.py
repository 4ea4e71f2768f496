"""The embedded broker: durable settings, and what it keeps through stops and crashes."""

import json
import os
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import nats
import pytest
from nats.js.api import StreamConfig

from ironcart.embedded.nats_server import PAYLOAD_MAX_BYTES, NatsServer, can_write
from ironcart.embedded.ports import free_port


def _monitor(server: NatsServer, page: str) -> dict[str, object]:
    with urllib.request.urlopen(f"{server.monitor_url}/{page}", timeout=5) as answer:
        found: dict[str, object] = json.load(answer)
        return found


async def _publish(server: NatsServer, count: int) -> int:
    """Publish to the stream S, making it; returns how many messages it then holds."""
    client = await nats.connect(server.url)
    try:
        jetstream = client.jetstream()
        await jetstream.add_stream(StreamConfig(name="S", subjects=["s.>"]))
        for number in range(count):
            await jetstream.publish("s.x", str(number).encode())
        return (await jetstream.stream_info("S")).state.messages
    finally:
        await client.close()


def test_it_syncs_every_write_and_takes_one_mebibyte(broker: NatsServer) -> None:
    settings = _monitor(broker, "varz")
    jetstream = _monitor(broker, "jsz?config=1")

    assert settings["max_payload"] == PAYLOAD_MAX_BYTES
    assert settings["host"] == "127.0.0.1"
    config = jetstream["config"]
    assert isinstance(config, dict)
    assert config["sync_always"] is True
    assert config["max_storage"] == 32 * 1024**3
    assert str(config["store_dir"]).startswith(str(broker.store))


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="Linux alone has this policy")
def test_it_pushes_nobody_off_a_core(broker: NatsServer) -> None:
    threads = [int(path.name) for path in Path(f"/proc/{broker.pid}/task").iterdir()]
    assert {os.sched_getscheduler(thread) for thread in threads} == {os.SCHED_BATCH}


async def test_what_was_acknowledged_is_there_after_a_kill(own_broker: NatsServer) -> None:
    before = own_broker.pid
    assert await _publish(own_broker, 20) == 20

    own_broker.kill()
    own_broker.start()

    assert own_broker.pid != before
    assert await _publish(own_broker, 5) == 25


async def test_a_restart_keeps_ports_and_messages(own_broker: NatsServer) -> None:
    assert await _publish(own_broker, 3) == 3

    own_broker.restart()

    assert await _publish(own_broker, 0) == 3


def test_stopping_twice_is_the_same_as_once(own_broker: NatsServer) -> None:
    pid = own_broker.pid

    own_broker.terminate()
    own_broker.terminate()

    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(LookupError):
        _ = own_broker.pid


def test_a_folder_with_spaces_and_accents_is_fine(tmp_path: Path) -> None:
    port = free_port()
    server = NatsServer(
        tmp_path / 'dé "dossier"', port=port, monitor_port=free_port(avoid={port}), name="n1"
    )

    server.start()

    assert (server.store / "jetstream").is_dir()
    server.terminate()


@pytest.mark.parametrize(
    ("status", "said", "alive"),
    [
        (200, '{"status":"ok"}', True),
        (503, '{"status":"unavailable","error":"JetStream has no leader"}', True),
        (503, '{"status":"unavailable","error":"JetStream stream x write error: no space"}', False),
        (503, '{"status":"unavailable","error":"JetStream not enabled (10076)"}', False),
    ],
)
def test_a_node_of_a_cluster_is_started_anew_only_for_what_that_mends(
    status: int, said: str, alive: bool
) -> None:
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(said.encode())

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()

        assert can_write(f"http://127.0.0.1:{server.server_port}/healthz")() is alive
