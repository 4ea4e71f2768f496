"""The supervisor: starts in order, restarts what ends, stops in order, leaves no orphans."""

import asyncio
import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from ironcart.embedded import launch, supervisor
from ironcart.embedded.ports import free_port
from ironcart.embedded.process import CannotStart, Child, http_ready
from ironcart.embedded.supervisor import BACKOFF_MAX_S, Part, State, Supervisor, backoff_s

WITHIN_S = 20.0

# Answers 200 from the start; the second argument is what it does about SIGTERM.
SERVER = """
import http.server, signal, sys
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *args):
        pass
if sys.argv[2] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("listening", flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""


class Crew:
    """A supervisor with what it said, and a way to wait for what it does."""

    def __init__(self, group: asyncio.TaskGroup) -> None:
        self.lines: list[str] = []
        self.pids: list[list[int | None]] = []
        self.supervisor = Supervisor(group, tell=self.lines.append, changed=self._changed)

    def _changed(self) -> None:
        self.pids.append([part.pid for part in self.supervisor.parts.values()])

    def part(self, name: str) -> Part:
        return self.supervisor.parts[name]

    async def until(self, met: Callable[[], bool]) -> None:
        async with asyncio.timeout(WITHIN_S):
            while not met():  # noqa: ASYNC110 - processes tell nobody
                await asyncio.sleep(0.01)


@asynccontextmanager
async def crew() -> AsyncIterator[Crew]:
    async with asyncio.TaskGroup() as group:
        found = Crew(group)
        try:
            yield found
        finally:
            await found.supervisor.stop(found.supervisor.parts, timeout_s=5)


def server(folder: Path, name: str, manner: str = "polite") -> Child:
    port = free_port()
    return Child(
        name=name,
        argv=(sys.executable, "-c", SERVER, str(port), manner),
        log=folder / f"{name}.log",
        ready=http_ready(f"http://127.0.0.1:{port}/"),
    )


def program(folder: Path, name: str, code: str) -> Child:
    return Child(
        name=name,
        argv=(sys.executable, "-c", code),
        log=folder / f"{name}.log",
        ready=lambda: False,
    )


async def test_a_child_that_is_killed_is_running_again_with_a_new_pid(tmp_path: Path) -> None:
    async with crew() as running:
        running.supervisor.start(server(tmp_path, "a"), server(tmp_path, "b"))
        await running.supervisor.ready(["a", "b"], WITHIN_S)
        a, b = running.part("a"), running.part("b")
        first, other = a.pid, b.pid
        assert first is not None

        os.kill(first, signal.SIGKILL)
        await running.until(lambda: a.restarts == 1 and a.state is State.UP)

        assert a.pid != first
        assert b.pid == other
        assert b.restarts == 0
        assert running.pids[-1] == [a.pid, b.pid]
        assert running.lines == ["a ended by SIGKILL: starting it again now"]
        assert (tmp_path / "a.log").read_text() == "listening\nlistening\n"


async def test_a_child_that_lives_but_cannot_work_is_started_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "ALIVE_POLL_S", 0.01)
    unwell = tmp_path / "unwell"
    child = replace(server(tmp_path, "web"), alive=lambda: not unwell.exists())
    async with crew() as found:
        found.supervisor.start(child)
        await found.supervisor.ready(["web"], WITHIN_S)
        first = found.part("web").pid
        unwell.touch()
        await found.until(lambda: found.part("web").pid != first)
        unwell.unlink()
        await found.supervisor.ready(["web"], WITHIN_S)
    assert any("cannot work" in line for line in found.lines)


async def test_a_child_that_keeps_ending_is_started_again_and_again_but_not_at_once(
    tmp_path: Path,
) -> None:
    async with crew() as running:
        running.supervisor.start(program(tmp_path, "a", "raise SystemExit(3)"))

        await running.until(lambda: len(running.lines) >= 3)

        assert running.lines[:3] == [
            "a ended (3): starting it again now",
            "a ended (3): starting it again in 0.25 s",
            "a ended (3): starting it again in 0.5 s",
        ]


def test_the_pause_before_a_restart_grows_and_is_capped() -> None:
    pauses = [backoff_s(ends) for ends in (0, 1, 2, 3, 4, 5, 6, 7, 1_000)]

    assert pauses == [0, 0, 0.25, 0.5, 1, 2, 4, BACKOFF_MAX_S, BACKOFF_MAX_S]


async def test_a_child_that_is_not_ready_in_time_is_named_with_its_log(tmp_path: Path) -> None:
    async with crew() as running:
        running.supervisor.start(
            server(tmp_path, "a"), program(tmp_path, "b", "import signal; signal.pause()")
        )

        with pytest.raises(CannotStart, match=r"^b is not ready after 1 s: see .*b\.log$"):
            await running.supervisor.ready(["a", "b"], 1)


async def test_a_program_that_does_not_exist_is_said_in_its_log(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    missing = Child(name="a", argv=("/no/such/program",), log=log, ready=lambda: False)
    async with crew() as running:
        running.supervisor.start(missing)

        await running.until(lambda: bool(running.lines))

        assert running.lines[0] == f"a ended ({launch.NOT_STARTED}): starting it again now"
        assert "cannot start /no/such/program" in log.read_text()


async def test_stopping_asks_all_at_once_and_insists_with_the_deaf(tmp_path: Path) -> None:
    async with crew() as running:
        running.supervisor.start(server(tmp_path, "a"), server(tmp_path, "b", "deaf"))
        await running.supervisor.ready(["a", "b"], WITHIN_S)

        await running.supervisor.stop(["a", "b", "never started"], timeout_s=0.5)

        assert [running.part(name).state for name in "ab"] == [State.STOPPED, State.STOPPED]
        assert running.lines == ["b has not stopped in time: insisting"]
        assert running.part("a").restarts == running.part("b").restarts == 0


async def test_a_child_waiting_to_be_started_again_is_stopped_at_once(tmp_path: Path) -> None:
    async with crew() as running:
        running.supervisor.start(program(tmp_path, "a", "raise SystemExit(3)"))
        await running.until(lambda: len(running.lines) >= 5)

        async with asyncio.timeout(0.5):
            await running.supervisor.stop(["a"], timeout_s=5)

        assert running.part("a").state is State.STOPPED


# Prints the child's pid and is then killed.
PARENT = """
import os, sys
from pathlib import Path
from ironcart.embedded import launch, process

sys.platform = sys.argv[2]
child = process.Child(
    name="c", argv=(sys.executable, "-c", "import signal; signal.pause()"),
    log=Path(sys.argv[1]) / "c.log", ready=lambda: True,
)
print(process._spawn(child).pid, flush=True)
os.read(0, 1)
"""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="reads /proc")
@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_children_die_when_their_parent_is_killed(tmp_path: Path, platform: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path), platform],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        gone = os.pidfd_open(child)

        parent.kill()

    assert _ends(gone)


def _ends(process: int) -> bool:
    """Whether the process behind this pidfd ends in time."""
    readable, _, _ = select.select([process], [], [], WITHIN_S)
    with contextlib.suppress(OSError):
        os.close(process)
    return bool(readable)
