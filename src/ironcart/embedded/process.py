"""One child process: what to run, how to start it, and a handle for a server of its own."""

import http.client
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ironcart.embedded import launch

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
CHECK_TIMEOUT_S = 2.0
POLL_INTERVAL_S = 0.05
RESPAWN_DELAY_S = 0.25


class CannotStart(Exception):
    """Something on this machine is in the way; the message is one line for a person."""


@dataclass(frozen=True, kw_only=True)
class Account:
    """The user a child runs as."""

    uid: int
    gid: int


@dataclass(frozen=True, kw_only=True)
class Child:
    """A program to keep running.

    `ready` may block for `CHECK_TIMEOUT_S` and never raises; so may `alive`, which is asked from
    then on where only a fresh start can mend what is wrong. `stop_signal` asks it to finish,
    `last_signal` insists, `orphan_signal` reaches it when its parent is gone. `inherit` are
    open files it gets a copy of. One that is `patient` pushes nobody off a core when it is woken
    (Linux only): it waits until one is free, or whoever has it has had their share.
    """

    name: str
    argv: tuple[str, ...]
    log: Path
    ready: Callable[[], bool]
    alive: Callable[[], bool] | None = None
    env: Mapping[str, str] | None = None
    account: Account | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    last_signal: signal.Signals = signal.SIGKILL
    orphan_signal: signal.Signals = signal.SIGKILL
    inherit: tuple[int, ...] = ()
    patient: bool = False


def launch_argv(child: Child) -> list[str]:
    """Return the command that becomes the child and ties its life to this process."""
    account = child.account or Account(uid=launch.KEEP_ACCOUNT, gid=launch.KEEP_ACCOUNT)
    guard = launch.BY_KERNEL if sys.platform == "linux" else launch.BY_WATCHER
    numbers = (os.getpid(), child.orphan_signal, account.uid, account.gid, child.patient)
    launcher = [sys.executable, "-I", "-S", launch.__file__]
    return [*launcher, *(str(int(number)) for number in numbers), guard, *child.argv]


@contextmanager
def launch_options(child: Child) -> Iterator[dict[str, Any]]:
    """Give the options for starting `launch_argv(child)`; its output goes to its log."""
    child.log.parent.mkdir(parents=True, exist_ok=True)
    with child.log.open("ab") as log:
        yield {
            "stdin": subprocess.DEVNULL,
            "stdout": log,
            "stderr": log,
            "env": child.env,
            "pass_fds": child.inherit,
            # A Ctrl-C at the terminal is for the parent alone, which stops things in order.
            "start_new_session": True,
        }


def http_ready(url: str, ca: Path | None = None) -> Callable[[], bool]:
    """Return a check that is true when `url` answers 200; over HTTPS it has to be of `ca`."""
    parts = urlsplit(url)
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    context = None if ca is None else ssl.create_default_context(cafile=ca)

    def check() -> bool:
        connection = (
            http.client.HTTPConnection(parts.netloc, timeout=CHECK_TIMEOUT_S)
            if context is None
            else http.client.HTTPSConnection(parts.netloc, timeout=CHECK_TIMEOUT_S, context=context)
        )
        try:
            connection.request("GET", target)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    return check


def ports_ready(*ports: int) -> Callable[[], bool]:
    """Return a check that is true when every one of these loopback ports accepts."""

    def check() -> bool:
        try:
            for port in ports:
                socket.create_connection(("127.0.0.1", port), CHECK_TIMEOUT_S).close()
        except OSError:
            return False
        return True

    return check


class Server(ABC):
    """A server started and stopped by hand, as tests do; it comes back on the same ports.

    Start it from the main thread: its life is tied to the thread that starts it.
    """

    _child: Child | None = None
    _running: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def child(self) -> Child:
        """Make everything ready on disk, and say how to run it."""

    @property
    def pid(self) -> int:
        """The running process; `LookupError` when there is none."""
        if self._running is None:
            raise LookupError("it is not running")
        return self._running.pid

    def start(self, timeout_s: float = START_TIMEOUT_S) -> None:
        """Start it and return when it is ready; one that gives up early is started again."""
        child = self._child = self.child()
        deadline = time.monotonic() + timeout_s
        self._running = _spawn(child)
        while not child.ready():
            if time.monotonic() > deadline:
                self.kill()
                raise CannotStart(f"{child.name} is not ready after {timeout_s:g} s: {child.log}")
            if self._running.poll() is not None:
                time.sleep(RESPAWN_DELAY_S)
                self._running = _spawn(child)
            time.sleep(POLL_INTERVAL_S)

    def terminate(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Stop it in good order, insisting when `timeout_s` have passed. Safe to repeat."""
        if self._running is None or self._child is None:
            return
        for order in (self._child.stop_signal, self._child.last_signal, signal.SIGKILL):
            self._running.send_signal(order)
            try:
                self._running.wait(timeout_s)
                break
            except subprocess.TimeoutExpired:
                continue
        self._running = None

    def kill(self) -> None:
        """Kill it as a crash would (SIGKILL)."""
        if self._running is not None:
            self._running.kill()
            self._running.wait()
            self._running = None

    def restart(self) -> None:
        """Stop it in good order and start it again on the same ports."""
        self.terminate()
        self.start()


def _spawn(child: Child) -> subprocess.Popen[bytes]:
    with launch_options(child) as options:
        return subprocess.Popen(launch_argv(child), **options)  # noqa: S603 - words of ours
