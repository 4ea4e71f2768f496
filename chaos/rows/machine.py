"""The machine itself: clocks that jump, disks that are full, power that fails."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from chaos import disks
from chaos.row import Arena, Felt, Row
from chaos.rows.signals import family, ready, replaced, send
from chaos.system import CLI, SERVICES, is_free

FAKETIME = tuple(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
LASTS_S = 6.0
# Those that log each event they deal with: their log tells what time they think it is.
TALKATIVE = ("orders", "inventory", "payments", "notifications")
REPLICA_STOPS_WITHIN_S = 20.0
DISK_FULL_S = 6.0
REPLICA_PORTS = range(19_000, 19_900)
FELT_WITHIN_S = 45.0


def lacks_faketime() -> str:
    """Say that libfaketime is missing, if it is."""
    return "" if FAKETIME else "libfaketime is not installed"


def environ_of(pid: int) -> dict[str, str]:
    """Return what a running process was started with."""
    pairs = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return dict(pair.decode().split("=", 1) for pair in pairs if b"=" in pair)


@asynccontextmanager
async def replica(arena: Arena, service: str, extra: dict[str, str]) -> AsyncIterator[str]:
    """Run one more process of a service for the length of a `with`; lends its address."""
    environ = environ_of(arena.system.pid_of(service))
    port = next(port for port in arena.draw.sample(REPLICA_PORTS, 100) if is_free(port))
    environ |= {"IRONCART_PORT": str(port)} | extra
    with (arena.system.data / "replica.out").open("ab") as out:
        process = await asyncio.create_subprocess_exec(
            *(*CLI, "run", service), stdout=out, stderr=out, env=environ, start_new_session=True
        )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            async with asyncio.timeout(REPLICA_STOPS_WITHIN_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


async def clock_jumps(arena: Arena, felt: Felt, *, offset: str) -> None:
    """Let a second replica of one service work with a clock that is wrong and then jumps."""
    service = arena.draw.choice(TALKATIVE)
    began_at = time.time()
    told = arena.system.data / f"faketime-{service}"
    told.write_text("+0\n")
    extra = {
        "LD_PRELOAD": str(FAKETIME[0]),
        "FAKETIME_TIMESTAMP_FILE": str(told),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    outside = arena.outside
    async with replica(arena, service, extra) as url:

        async def answers() -> bool:
            async with outside.session.get(f"{url}/ready") as response:
                return response.status == 200

        if not await outside.until(answers, FELT_WITHIN_S):
            felt.saw(f"a replica of {service} under a false clock is ready", proof=False)
            return
        log = arena.system.data / "replica.out"
        begun = log.stat().st_size
        felt.inject()
        told.write_text(f"{offset}\n")
        await asyncio.sleep(LASTS_S)
        felt.heal()
    with log.open("rb") as file:
        file.seek(begun)
        said = {json_time(line[:200].decode(errors="replace"))[:13] for line in file}
    true = {time.strftime("%Y-%m-%dT%H", time.gmtime(at)) for at in (began_at, time.time())}
    false = sorted(said - true - {""})
    felt.saw(f"the replica of {service} logged in the hour {', '.join(false)}", proof=false)


def json_time(line: str) -> str:
    """Return the time of a log line, or nothing."""
    _, _, rest = line.partition('"time":"')
    return rest.partition('"')[0]


async def disk_full(arena: Arena, felt: Felt, *, part: str) -> None:
    """Leave no room on the disk of the broker or of the database for a while."""
    mount = disks.mount_of(arena.system.data, part)
    pid = arena.system.pid_of(part)
    felt.inject()
    filler = disks.fill(mount)
    try:
        await asyncio.sleep(DISK_FULL_S)
        left = os.statvfs(mount).f_bavail
    finally:
        filler.unlink(missing_ok=True)
    if part == "broker":
        # What a liveness probe on /healthz does: after ENOSPC a stream takes nothing any more.
        said = await arena.outside.lag()
        os.kill(arena.system.pid_of("broker"), signal.SIGKILL)
        await replaced(arena, felt, part, pid)
        felt.saw("the monitor page answered" if said is not None else "the broker was gone")
    felt.heal()
    felt.saw(f"{left} blocks left on the disk of the {part}", proof=left == 0)
    felt.saw("every service is ready again", proof=await ready(arena, *SERVICES))


async def power_loss(arena: Arena, felt: Felt) -> None:
    """Lose what broker and database had not synced, and their processes, at one moment."""
    broker, postgres = arena.system.pid_of("broker"), arena.system.pid_of("postgres")
    mounts = [disks.mount_of(arena.system.data, part) for part in ("broker", "postgres")]
    felt.inject()
    # The supervisor must not start anything on a disk that is not there.
    os.kill(arena.system.pid, signal.SIGSTOP)
    try:
        for mount in mounts:
            disks.lose_power(mount)
        send([*family(broker), *family(postgres)], signal.SIGKILL)
        for mount in mounts:
            await disks.mount_again(mount)
        kept = [mount.name for mount in mounts if disks.kept_unsynced(mount)]
        felt.saw("what was not synced is gone from both disks", proof=not kept)
    finally:
        os.kill(arena.system.pid, signal.SIGCONT)
        felt.heal()
    await replaced(arena, felt, "broker", broker)
    await replaced(arena, felt, "postgres", postgres)
    felt.saw("every service is ready again", proof=await ready(arena, *SERVICES))


MACHINE_ROWS = (
    Row("a replica's clock jumps +3 days", partial(clock_jumps, offset="+3d"), lacks_faketime),
    Row("a replica's clock jumps -1 hour", partial(clock_jumps, offset="-1h"), lacks_faketime),
    Row("disk of the broker full", partial(disk_full, part="broker"), disks.lacking),
    Row("disk of Postgres full", partial(disk_full, part="postgres"), disks.lacking),
    Row("power loss: what was not synced is gone", power_loss, disks.lacking),
)
