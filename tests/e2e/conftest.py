"""One running system for the tests that only need some system: `ironcart up` on a folder."""

import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aiohttp
import pytest
from shopping import Shop, System, seven_free_ports

from ironcart.embedded.placement import forget

UP = (sys.executable, "-m", "ironcart.cli", "up")
READY_WITHIN_S = 90.0
STOPPED_WITHIN_S = 45.0


@pytest.fixture(scope="session")
def system() -> Iterator[System]:
    """The session's system; a test that breaks it for good starts its own."""
    top = Path(tempfile.mkdtemp(prefix="ironcart-e2e-", dir="/var/tmp"))
    top.chmod(0o755)
    folder, output = top / "data", top / "up.out"
    with output.open("wb") as out:
        process = subprocess.Popen(
            (*UP, "--data", str(folder), "--port", str(seven_free_ports())),
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    deadline = time.monotonic() + READY_WITHIN_S
    while not (folder / "run.json").exists():
        assert process.poll() is None, output.read_text()
        assert time.monotonic() < deadline, output.read_text()
        time.sleep(0.05)
    yield System(folder)
    process.send_signal(signal.SIGTERM)
    assert process.wait(STOPPED_WITHIN_S) == 0, output.read_text()
    forget(folder)
    shutil.rmtree(top)


@pytest.fixture
async def shop(system: System) -> AsyncIterator[Shop]:
    """The session's system over HTTP; faults are healed afterwards."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=40)) as session:
        shop = Shop(system, session)
        yield shop
        await shop.heal()
