"""Checkpoints in an object store that creates and never replaces."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from aiohttp import web
from audit_parts import Audited, audited, conflicts

from ironcart.embedded.ports import free_port
from ironcart.services.audit.app import STREAM_NAMES
from ironcart.services.audit.gateway.objects import Objects

__all__ = ["audited"]


@dataclass
class Bucket:
    """An object store that creates and never replaces; `answers` may stand in for it."""

    url: str
    objects: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    status: int = 0


@asynccontextmanager
async def bucket() -> AsyncIterator[Bucket]:
    port = free_port()
    found = Bucket(f"http://127.0.0.1:{port}/audit?sig=s%2Fecret")

    async def answer(request: web.Request) -> web.Response:
        found.asked.append(f"{request.method} {request.rel_url}")
        if found.status:
            return web.Response(status=found.status)
        if request.headers.get("Authorization") != "Bearer one":
            return web.Response(status=401)
        name = request.path
        if request.method == "GET":
            kept = found.objects.get(name)
            return web.Response(body=kept) if kept is not None else web.Response(status=404)
        if request.headers["If-None-Match"] == "*" and name in found.objects:
            return web.Response(status=412)
        found.objects[name] = await request.read()
        return web.Response(status=201)

    server = web.Application()
    server.router.add_route("*", "/{name:.*}", answer)
    runner = web.AppRunner(server)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    yield found
    await runner.cleanup()


async def test_an_object_store_gets_each_checkpoint_once_and_is_read_by_the_outsider(
    audited: Audited, tmp_path: Path
) -> None:
    headers = tmp_path / "headers"
    headers.write_text("Authorization: Bearer none\n")
    async with bucket() as store:
        rounds = audited.rounds(target=Objects(store.url, headers))
        other = audited.rounds(target=Objects(store.url, headers))
        await audited.keep(STREAM_NAMES, 2)
        await rounds.go()
        assert await audited.numbers() == [], "not before the store was asked"
        headers.write_text("Authorization: Bearer one\n")
        await rounds.go()
        store.status = 503
        for _ in range(3):
            await audited.keep(STREAM_NAMES, 2)
            await rounds.go()
        assert list(store.objects) == ["/audit/00000000000000000001.json"]
        store.status = 0
        await asyncio.gather(rounds.go(), other.go())
        assert len(store.objects) == 4
        assert all(each.endswith(".json?sig=s/ecret") for each in store.asked)
        judge = partial(
            audited.judge, checkpoints=store.url, headers={"Authorization": "Bearer one"}
        )
        report = await judge()
        assert (report.faults, report.checkpoints["exported"]) == ([], 4)
        assert (await judge(3)).ok
        taken = store.objects.pop("/audit/00000000000000000002.json")
        (fault,) = (await judge()).faults
        assert fault.startswith("checkpoint 2 is not there")
        store.objects["/audit/00000000000000000002.json"] = taken.replace(b"1", b"2", 1)
        (fault,) = (await judge()).faults
        assert fault.startswith("checkpoint 2 cannot be read")
        await audited.keep(STREAM_NAMES, 2)
        store.objects["/audit/00000000000000000005.json"] = taken
        before = conflicts()
        await rounds.go()
        assert conflicts() == before + 1, "somebody else has written there"
        await rounds.close()
        await other.close()
