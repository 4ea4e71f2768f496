"""With IRONCART_TLS_DIR a database that shows no certificate of our issuer is not spoken to."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from ironcart.cli.provision import _for_dbmate
from ironcart.embedded.certificates import issue
from ironcart.embedded.postgres import Postgres
from ironcart.toolkit.database import Database
from ironcart.toolkit.outcomes import Unavailable
from ironcart.toolkit.tls import Tls, verified

# What a client asks before anything else, and the answer: yes, begin with TLS.
SSL_REQUEST = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"
YES = b"S"
NAME = "IRONCART_DATABASE_URL"


@asynccontextmanager
async def behind_tls(target_port: int, tls: Tls) -> AsyncIterator[int]:
    """A port that speaks Postgres over TLS alone, before a real one whose wheel lacks it."""
    running: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        try:
            if await reader.readexactly(len(SSL_REQUEST)) == SSL_REQUEST:
                writer.write(YES)
                await writer.start_tls(tls.server)
                far_reader, far_writer = await asyncio.open_connection("127.0.0.1", target_port)
                await asyncio.gather(_pass_on(reader, far_writer), _pass_on(far_reader, writer))
        except (OSError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()
            running.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for each in list(running):
            each.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(65_536):
        writer.write(chunk)
        await writer.drain()
    writer.close()


async def _is_encrypted(url: str) -> bool:
    database = Database(url, "public", "test", connections_max=1)
    try:
        async with database.acquire() as connection:
            assert await connection.fetchval("SELECT 1") == 1
            transport = connection._con._transport  # type: ignore[attr-defined]
            return isinstance(transport.get_extra_info("ssl_object"), ssl.SSLObject)
    finally:
        await database.close()


async def test_only_a_database_of_our_issuer_is_spoken_to(
    postgres: Postgres, database_url: str, tmp_path: Path
) -> None:
    issue(tmp_path / "ours", ["orders", "postgres"])
    issue(tmp_path / "theirs", ["orders"])
    told = {folder: {"IRONCART_TLS_DIR": str(tmp_path / folder)} for folder in ("ours", "theirs")}
    for environ in told.values():
        environ["IRONCART_TLS_DIR"] += "/orders"

    async with behind_tls(postgres.port, Tls(tmp_path / "ours" / "postgres")) as port:
        url = database_url.replace(f":{postgres.port}/", f":{port}/")
        ours = verified(told["ours"] | {NAME: f"{url}?sslmode=prefer"})[NAME]
        theirs = verified(told["theirs"] | {NAME: url})[NAME]

        assert await _is_encrypted(ours)
        with pytest.raises(Unavailable, match="CERTIFICATE_VERIFY_FAILED"):
            await _is_encrypted(theirs)
    plain = verified(told["ours"] | {NAME: database_url})[NAME]
    with pytest.raises(Unavailable, match="rejected SSL upgrade"):
        await _is_encrypted(plain)
    assert "sslmode=verify-full" in _for_dbmate(plain, "orders")
    assert not await _is_encrypted(database_url)
