"""The scanner finds what is planted, in each kind of sink and however it is written."""

import asyncio
import base64
import json
import sys
import urllib.parse
from collections.abc import Callable
from pathlib import Path

import asyncpg
import nats
import pytest
from aiohttp import web

from sinks import Scan, forms

NEEDLE = "kanarie7f3a9c12"
MAIL = f"Anna.{NEEDLE}+sale@Shop.example"
DISGUISES: dict[str, Callable[[bytes], bytes]] = {
    "as it is": lambda raw: raw,
    "in capitals": bytes.upper,
    "hex": lambda raw: raw.hex().encode(),
    "capital hex": lambda raw: raw.hex().upper().encode(),
    "percent": lambda raw: "".join(f"%{byte:02X}" for byte in raw).encode(),
    "form": lambda raw: urllib.parse.quote_plus(raw).encode(),
    "json": lambda raw: json.dumps(raw.decode()).encode(),
    "base64": base64.b64encode,
    "base64, one byte in": lambda raw: base64.b64encode(b"1" + raw + b"12"),
    "base64, two bytes in": lambda raw: base64.urlsafe_b64encode(b"12" + raw + b"1"),
    "utf-16": lambda raw: raw.decode().encode("utf-16"),
}


def scan() -> Scan:
    return Scan({"mail": NEEDLE})


@pytest.mark.parametrize("disguise", DISGUISES)
def test_a_needle_is_found_however_it_is_written(disguise: str) -> None:
    looking = scan()

    looking.look("bytes", "here", b"before " + DISGUISES[disguise](MAIL.encode()) + b" after")
    looking.look("bytes", "there", b"before " + DISGUISES[disguise](b"nobody@shop.example"))

    assert {each.place for each in looking.found} == {"bytes here"}


@pytest.mark.parametrize("secret", ["a+/b" * 8, "p@ss w0rd%&", "ünïcode-secret"])
def test_every_form_of_a_secret_is_found_where_it_stands(secret: str) -> None:
    for offset in range(3):
        looking = Scan({"secret": secret})
        looking.look("bytes", "here", base64.b64encode(bytes(offset) + secret.encode() + b"end"))
        assert looking.found
    assert len(set(forms(secret).values())) > 8


async def test_it_is_found_in_tables_and_in_what_the_server_remembers(database_url: str) -> None:
    connection = await asyncpg.connect(database_url)
    await connection.execute("CREATE EXTENSION pg_stat_statements")
    await connection.execute("CREATE SCHEMA odd")
    await connection.execute("CREATE TABLE odd.one (a text, b bytea, c jsonb, d text[])")
    columns = {"a": MAIL, "b": MAIL.encode(), "c": json.dumps([MAIL]), "d": ["x", MAIL]}
    for column, value in columns.items():
        await connection.execute("TRUNCATE odd.one")
        await connection.execute(f"INSERT INTO odd.one ({column}) VALUES ($1)", value)
        looking = scan()
        await looking.tables(database_url)
        assert {each.place for each in looking.found} == {"table odd.one"}, column
    await connection.execute("TRUNCATE odd.one")
    await connection.execute(f"COMMENT ON TABLE odd.one IS '{MAIL}'")
    await connection.close()
    looking = scan()

    await looking.tables(database_url)

    assert {each.place for each in looking.found} == {
        "server SELECT * FROM pg_stat_statements",
        "server SELECT * FROM pg_description",
    }


async def test_it_is_found_in_bodies_subjects_and_headers_of_messages(broker_url: str) -> None:
    client = await nats.connect(broker_url)
    stream = client.jetstream()
    await stream.add_stream(name="SCANNED", subjects=["scanned.>"])
    await stream.publish("scanned.x", b"nothing")
    await stream.publish("scanned.x", MAIL.encode())
    await stream.publish("scanned.x", b"", headers={"X-Mail": MAIL})
    await stream.publish(f"scanned.{NEEDLE}", b"")
    looking = scan()

    await looking.streams(broker_url, ["SCANNED"])

    await stream.delete_stream("SCANNED")
    await client.close()
    assert [each.place for each in looking.found] == [f"stream SCANNED {n}" for n in (2, 3, 4)]


async def test_it_is_found_in_files_pages_and_command_lines(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.log").write_bytes(b"\x00\xff" + MAIL.encode())
    (tmp_path / "allowed").write_text(MAIL)
    (tmp_path / "b").write_text("nothing")
    looking = Scan({"mail": NEEDLE}, allowed={"mail": ["allowed"]})
    app = web.Application()
    app.router.add_get("/metrics", _answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "input()", MAIL), stdin=asyncio.subprocess.PIPE
    )
    looking.files("file", tmp_path)
    await looking.pages("metrics", [f"http://127.0.0.1:{port}/metrics"])
    looking.command_lines([process.pid])
    await process.communicate(b"\n")
    await runner.cleanup()

    assert [each.place.split()[0] for each in looking.found] == ["file", "metrics", "command"]
    assert looking.looked["file"] > 2 * len(MAIL)


async def _answer(_: web.Request) -> web.Response:
    return web.Response(text=f'x{{who="{MAIL}"}} 1\n')
