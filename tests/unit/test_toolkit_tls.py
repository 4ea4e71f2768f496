"""Certificates from a folder: fresh ones are taken up, bad ones are not, databases are verified."""

import asyncio
import shutil
import ssl
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import pytest
import structlog
from cryptography import x509

from ironcart.embedded.certificates import issue
from ironcart.embedded.process import CannotStart
from ironcart.toolkit import telemetry
from ironcart.toolkit.lifecycle import renewal
from ironcart.toolkit.outcomes import Refused
from ironcart.toolkit.tls import CA, CERTIFICATE, KEY, Tls, find, verified
from shopping import until

NAMES = ("orders", "inventory")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    issue(tmp_path, NAMES)
    return tmp_path


async def _shown(tls: Tls, ca: Path, version: ssl.TLSVersion | None = None) -> int:
    """The serial number of the certificate that a server with these contexts shows."""

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0, ssl=tls.server)
    known = ssl.create_default_context(cafile=ca)
    if version is not None:
        known.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        known.maximum_version = version
        known.set_ciphers("ALL:@SECLEVEL=0")
    async with server:
        port = server.sockets[0].getsockname()[1]
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=known)
        shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
    return x509.load_der_x509_certificate(shown).serial_number


def _serial(path: Path) -> int:
    return x509.load_pem_x509_certificate(path.read_bytes()).serial_number


async def test_a_renewed_certificate_is_shown_without_a_restart(folder: Path) -> None:
    tls = Tls(folder / "orders")
    first = await _shown(tls, folder / CA)
    assert first == _serial(folder / "orders" / CERTIFICATE)
    assert not tls.refresh()

    issue(folder, NAMES)

    assert tls.refresh()
    assert await _shown(tls, folder / CA) == _serial(folder / "orders" / CERTIFICATE) != first


async def test_a_key_that_does_not_fit_is_not_taken_up(folder: Path) -> None:
    tls = Tls(folder / "orders")
    first = await _shown(tls, folder / CA)
    shutil.copy(folder / "inventory" / KEY, folder / "orders" / KEY)

    with pytest.raises(Refused, match=r"do not fit: ca\.crt, tls\.crt and tls\.key"):
        tls.refresh()

    assert await _shown(tls, folder / CA) == first


async def test_a_service_looks_for_renewed_certificates_and_goes_on_after_bad_ones(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(renewal, "LOOK_EVERY_S", 0.01)
    tls = Tls(folder / "orders")
    with structlog.testing.capture_logs() as said:
        async with asyncio.TaskGroup() as group:
            looking = group.create_task(renewal.renew(tls))
            shutil.copy(folder / "inventory" / KEY, folder / "orders" / KEY)
            await _until_said(said, "Certificates not renewed")
            issue(folder, NAMES)
            await _until_said(said, "Certificates renewed")
            looking.cancel()

    assert await _shown(tls, folder / CA) == _serial(folder / "orders" / CERTIFICATE)
    assert telemetry.certificate_expires._value.get() == tls.expires_at.timestamp()


async def _until_said(said: list[MutableMapping[str, Any]], text: str) -> None:
    async def so() -> bool:
        return any(each["event"] == text for each in said)

    await until(so)


async def test_versions_before_1_2_are_not_spoken(folder: Path) -> None:
    tls = Tls(folder / "orders")
    with (
        pytest.warns(DeprecationWarning, match="TLSv1_1"),
        pytest.raises((ssl.SSLError, ConnectionError)),
    ):
        await _shown(tls, folder / CA, ssl.TLSVersion.TLSv1_1)
    assert await _shown(tls, folder / CA, ssl.TLSVersion.TLSv1_2)


@pytest.mark.parametrize("name", [CA, CERTIFICATE, KEY])
def test_a_file_that_is_missing_is_named(folder: Path, name: str) -> None:
    (folder / "orders" / name).unlink()

    with pytest.raises(Refused, match=rf"IRONCART_TLS_DIR: .*{name}: No such file"):
        Tls(folder / "orders")


@pytest.mark.parametrize("name", [CA, CERTIFICATE, KEY])
@pytest.mark.parametrize("left", ["", "nothing"])
def test_a_file_that_is_damaged_at_the_start_is_refused(folder: Path, name: str, left: str) -> None:
    (folder / "orders" / name).write_text(left)

    with pytest.raises(Refused, match=rf"{folder}/orders do not fit: ca\.crt"):
        Tls(folder / "orders")


def test_without_the_switch_there_is_no_tls(folder: Path) -> None:
    assert find({}) is None
    assert find({"IRONCART_TLS_DIR": ""}) is None
    assert find({"IRONCART_TLS_DIR": str(folder / "orders")}) is not None


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("postgresql://u:p@db.example/x", "sslmode=verify-full&sslrootcert=%2Fc%2Fca.crt"),
        ("postgresql://u:p@db/x?sslmode=disable", "sslmode=verify-full&sslrootcert=%2Fc%2Fca.crt"),
        (
            "postgresql://u:p@db/x?sslmode=verify-full&sslrootcert=%2Fown.crt",
            "sslmode=verify-full&sslrootcert=%2Fown.crt",
        ),
        (
            "postgresql://u:p@db/x?sslmode=require&sslrootcert=%2Fown.crt",
            "sslmode=verify-full&sslrootcert=%2Fc%2Fca.crt",
        ),
        ("postgresql://u:p@127.0.0.1/x", "sslmode=verify-full&sslrootcert=%2Fc%2Fca.crt"),
        ("postgresql://u:p@127.0.0.1/x?sslmode=disable", "sslmode=disable"),
    ],
)
def test_with_the_switch_every_database_shows_a_certificate(said: str, told: str) -> None:
    environ = {"IRONCART_TLS_DIR": "/c", "IRONCART_ORDERS_DATABASE_URL": said, "OTHER": said}

    found = verified(environ)

    assert found["IRONCART_ORDERS_DATABASE_URL"] == f"{said.partition('?')[0]}?{told}"
    assert found["OTHER"] == said
    assert verified(environ | {"IRONCART_TLS_DIR": ""})["IRONCART_ORDERS_DATABASE_URL"] == said


def test_certificates_are_for_their_owner_alone(folder: Path) -> None:
    for path in folder.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_damaged_issuer_is_said(folder: Path) -> None:
    (folder / CA).write_text("nothing")

    with pytest.raises(CannotStart, match="is damaged: delete both"):
        issue(folder, NAMES)
