"""`ironcart up` as a person runs it: ready, true, killed, restarted, stopped, started again."""

import json
import os
import re
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import pytest

from ironcart.embedded.folder import claim
from ironcart.embedded.placement import forget
from ironcart.embedded.ports import SERVICES
from shopping import READY_WITHIN_S, STOPPED_WITHIN_S, UP, free_ports

# Each takes seconds on a quiet machine.
BACK_WITHIN_S = 90.0
GONE_WITHIN_S = 30.0
REFUSED_WITHIN_S = 90.0
# Of a test; the longest starts `up` three times, half a minute on a quiet machine.
LIMIT_S = 600.0

pytestmark = pytest.mark.timeout(LIMIT_S)


class Up:
    """One `ironcart up` on a folder, and what it wrote."""

    def __init__(self, folder: Path, port: int, *options: str) -> None:
        self.folder = folder
        self.port = port
        self.output = folder.parent / "up.out"
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [*UP, "--data", str(folder), "--port", str(port), *options],
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def run(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "run.json").read_text())
        return found

    def wait_ready(self) -> dict[str, Any]:
        until(
            lambda: (self.folder / "run.json").exists() or self.process.poll() is not None,
            READY_WITHIN_S,
        )
        assert self.process.poll() is None, self.output.read_text()
        return self.run

    def stop(self) -> float:
        """SIGTERM; returns how long it took, in seconds."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(STOPPED_WITHIN_S) == 0, self.output.read_text()
        return time.monotonic() - began


def until(met: Callable[[], bool], within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not met():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.05)


def status_of(url: str) -> int:
    try:
        with urlopen(url, timeout=5) as answer:
            status: int = answer.status
            return status
    except HTTPError as error:
        return error.code
    except (URLError, OSError):
        return 0


def lives(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def pids(run: dict[str, Any]) -> list[int]:
    services = [pid for service in run["services"].values() for pid in service["pids"]]
    return [*services, *run["nats"]["pids"], run["postgres"]["pid"], run["sandbox"]["pid"]]


def place_order(run: dict[str, Any]) -> str:
    orders = run["services"]["orders"]["url"]
    stock = Request(
        f"{run['services']['inventory']['url']}/stock/SKU-UP",
        data=b'{"on_hand":1000}',
        headers={"Content-Type": "application/json"},
        method="PUT",
    )
    patiently(stock)
    body = {
        "customer_id": "C-1",
        "currency": "EUR",
        "items": [{"sku": "SKU-UP", "quantity": 1, "unit_price": 19.99}],
    }
    request = Request(
        f"{orders}/orders",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json", "Idempotency-Key": secrets.token_hex(8)},
    )
    return f"{orders}/orders/{json.loads(patiently(request))['order_id']}"


def patiently(request: Request) -> bytes:
    """Send a request, again while the answer is "not now", as a client of ours is told to."""
    deadline = time.monotonic() + BACK_WITHIN_S
    while True:
        try:
            with urlopen(request, timeout=10) as answer:
                body: bytes = answer.read()
                return body
        except HTTPError as error:
            if error.code != 503 or time.monotonic() > deadline:
                raise
            time.sleep(float(error.headers["Retry-After"]) / 10)


def order_status(url: str) -> str:
    with urlopen(url, timeout=10) as answer:
        return str(json.load(answer)["status"])


@contextmanager
def on_folder(folder: Path) -> Iterator[Callable[..., Up]]:
    """Gives what starts `up` on the folder; whatever still runs at the end is killed."""
    first_port = free_ports()
    started: list[Up] = []

    def starter(*options: str) -> Up:
        started.append(Up(folder, first_port, *options))
        return started[-1]

    yield starter
    for up in started:
        if up.process.poll() is None:
            up.process.kill()
            up.process.wait()
    if folder.exists():
        # Not before the last of its children is gone.
        os.close(claim(folder))
        forget(folder)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    with on_folder(tmp_path / "data") as starter:
        yield starter


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """One `up` that is ready, for every test that leaves it as it was."""
    with on_folder(tmp_path_factory.mktemp("up") / "data") as starter:
        up = starter()
        up.wait_ready()
        yield up


def check_parts(up: Up, run: dict[str, Any]) -> None:
    """Everything is there, and where run.json says."""
    assert list(run) == ["services", "nats", "postgres", "sandbox"]
    assert list(run["services"]) == list(SERVICES)
    for offset, name in enumerate(SERVICES):
        assert run["services"][name]["url"] == f"http://127.0.0.1:{up.port + offset}"
        assert status_of(f"{run['services'][name]['url']}/ready") == 200
    assert run["sandbox"]["url"] == f"http://127.0.0.1:{up.port + 6}"
    host, _, port = run["sandbox"]["smtp"].partition(":")
    socket.create_connection((host, int(port)), 5).close()
    assert all(lives(pid) for pid in pids(run))
    assert all(Path(store).is_dir() for store in run["nats"]["stores"])


def test_it_serves_an_order_has_it_after_a_stop_and_a_kill_and_places_more_when_asked(
    start: Callable[..., Up],
) -> None:
    first = start()
    run = first.wait_ready()
    check_parts(first, run)
    order = place_order(run)
    until(lambda: order_status(order) == "confirmed", BACK_WITHIN_S)
    until(lambda: "| orders ok" in first.output.read_text(), BACK_WITHIN_S)
    first.stop()
    assert not (first.folder / "run.json").exists()
    until(lambda: not any(lives(pid) for pid in pids(run)), GONE_WITHIN_S)

    second = start()
    run = second.wait_ready()
    assert order_status(order) == "confirmed"
    second.process.kill()
    second.process.wait()
    until(lambda: not any(lives(pid) for pid in pids(run)), GONE_WITHIN_S)

    third = start("--load", "5")
    until(lambda: str(third.process.pid) in (third.folder / "lock").read_text(), BACK_WITHIN_S)
    until(lambda: not (third.folder / "run.json").exists(), BACK_WITHIN_S)
    third.wait_ready()
    assert order_status(order) == "confirmed"
    until(lambda: bool(re.search("confirmed [1-9]", third.output.read_text())), BACK_WITHIN_S)
    third.stop()


@pytest.mark.parametrize("part", [*SERVICES, "nats", "postgres", "sandbox"])
def test_a_part_that_is_killed_comes_back_where_it_was(shared: Up, part: str) -> None:
    up = shared
    before = up.run

    def newest(run: dict[str, Any]) -> int:
        if part == "nats":
            return int(run["nats"]["pids"][0])
        return int(run[part]["pid"] if part in run else run["services"][part]["pids"][0])

    os.kill(newest(before), signal.SIGKILL)
    until(lambda: newest(up.run) != newest(before), BACK_WITHIN_S)
    until(
        lambda: all(
            status_of(f"{service['url']}/ready") == 200 for service in up.run["services"].values()
        ),
        BACK_WITHIN_S,
    )

    after = up.run
    assert lives(newest(after))
    assert [service["url"] for service in after["services"].values()] == [
        service["url"] for service in before["services"].values()
    ]
    assert after["nats"]["urls"] == before["nats"]["urls"]
    assert after["postgres"]["url"] == before["postgres"]["url"]
    order = place_order(after)
    until(lambda: order_status(order) == "confirmed", BACK_WITHIN_S)
    assert f"{'broker-1' if part == 'nats' else part} ended by SIGKILL" in up.output.read_text()


def test_a_second_up_on_the_folder_is_refused_in_one_line(shared: Up) -> None:
    status, lines = refused("--data", str(shared.folder))

    assert status == 1
    holder = f"another `ironcart up` (pid {shared.process.pid}) uses {shared.folder}"
    assert lines == [f"ironcart up: {holder}: stop it, or choose another folder with --data"]
    assert shared.process.poll() is None
    assert (shared.folder / "run.json").exists()


def test_a_stop_while_starting_is_a_clean_stop(start: Callable[..., Up]) -> None:
    up = start()
    until(lambda: "starting" in up.output.read_text(), BACK_WITHIN_S)

    up.stop()

    assert not (up.folder / "run.json").exists()


def test_a_port_in_use_is_refused_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]

        status, lines = refused("--data", str(tmp_path / "data"), "--port", str(port))

    assert status == 1
    assert len(lines) == 1
    assert lines[0].startswith(f"ironcart up: port {port} (orders) is in use")
    assert lines[0].endswith("with --port")


def test_an_unwritable_folder_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    status, lines = refused("--data", str(tmp_path / "file" / "data"))

    assert status == 1
    assert len(lines) == 1
    assert lines[0].startswith("ironcart up: cannot write to ")


def refused(*options: str) -> tuple[int, list[str]]:
    """Run `up` that is expected to end by itself; returns its status and what it printed."""
    done = subprocess.run(
        [*UP, *options], capture_output=True, text=True, timeout=REFUSED_WITHIN_S, check=False
    )
    return done.returncode, (done.stdout + done.stderr).splitlines()
