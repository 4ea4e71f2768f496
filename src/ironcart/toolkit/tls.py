"""TLS by one switch: a folder with ca.crt, tls.crt and tls.key, as cert-manager writes it.

With it we serve HTTPS, show our certificate to the broker, and trust nobody whose certificate is
not from that ca.crt. Files that change are taken up for new connections, without a restart.
"""

import os
import ssl
import sys
import tempfile
import urllib.parse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from cryptography import x509
from msgspec import Struct

from ironcart.toolkit import settings
from ironcart.toolkit.outcomes import Refused

CA, CERTIFICATE, KEY = "ca.crt", "tls.crt", "tls.key"
DATABASE_URL = "DATABASE_URL"
VERIFIED = "verify-full"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Settings(Struct, frozen=True):
    """Where the certificates are, if there is TLS."""

    tls_dir: str = ""


class Tls:
    """Contexts for those who connect to us and for whom we connect to.

    Raises `Refused`, naming the folder, when a file is missing, damaged or not of the others.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.server = _for_callers()
        try:
            known = self._read(CA).decode("ascii")
            self.client = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cadata=known)
        except (ssl.SSLError, ValueError) as error:
            raise self._misfit() from error
        self._seen = b""
        self.refresh()

    def _read(self, name: str) -> bytes:
        path = self._folder / name
        try:
            return path.read_bytes()
        except OSError as error:
            raise Refused(f"IRONCART_TLS_DIR: {path}: {error.strerror}") from error

    def refresh(self) -> bool:
        """Take up what has changed in the folder; says whether anything has.

        Raises `Refused` and goes on with what it had when the files do not fit together. An issuer
        that is no longer in ca.crt stays trusted until the process ends.
        """
        ca, certificate, key = (self._read(name) for name in (CA, CERTIFICATE, KEY))
        seen = b"\0".join((ca, certificate, key))
        if seen == self._seen:
            return False
        try:
            with _file_of(certificate + b"\n" + key) as pair:
                # Into another context first, since they may be of two moments.
                _for_callers().load_cert_chain(pair)
                ends = x509.load_pem_x509_certificate(certificate).not_valid_after_utc
                self.client.load_verify_locations(cadata=ca.decode("ascii"))
                for context in (self.server, self.client):
                    context.load_cert_chain(pair)
            self.expires_at: datetime = ends
        except (ssl.SSLError, ValueError) as error:
            raise self._misfit() from error
        self._seen = seen
        return True

    def _misfit(self) -> Refused:
        what = f"{CA}, {CERTIFICATE} and {KEY}"
        return Refused(f"the certificates in {self._folder} do not fit: {what}")


def _for_callers() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


@contextmanager
def _file_of(content: bytes) -> Iterator[str]:
    """A file for OpenSSL to read, which nobody changes meanwhile; in memory where it can be."""
    if sys.platform == "linux":
        with os.fdopen(os.memfd_create("certificate"), "wb") as file:
            file.write(content)
            file.flush()
            yield f"/proc/self/fd/{file.fileno()}"
    else:
        with tempfile.NamedTemporaryFile() as file:
            file.write(content)
            file.flush()
            yield file.name


def find(environ: Mapping[str, str], scope: str = "") -> Tls | None:
    """The certificates of IRONCART_TLS_DIR, or None when it is not set."""
    folder = settings.load(Settings, environ, scope).tls_dir
    return Tls(Path(folder)) if folder else None


def verified(environ: Mapping[str, str], scope: str = "") -> dict[str, str]:
    """The same environment, but with TLS every database has to show who it is.

    Every address gets `sslmode=verify-full` and the folder's CA, unless it says so with a CA of its
    own, or `sslmode=disable` for this very machine.
    """
    folder = settings.load(Settings, environ, scope).tls_dir
    return {
        name: verified_url(url, Path(folder) / CA)
        if folder and url and name.startswith(settings.PREFIX) and name.endswith(DATABASE_URL)
        else url
        for name, url in environ.items()
    }


def verified_url(url: str, ca: Path) -> str:
    """The address of a database that has to show a certificate from `ca` for its host's name."""
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        return url  # Whoever connects says what is wrong with it.
    query = dict(urllib.parse.parse_qsl(parts.query))
    if query.get("sslmode") == "disable" and parts.hostname in LOOPBACK:
        return url
    if query.get("sslmode") != VERIFIED or "sslrootcert" not in query:
        query |= {"sslmode": VERIFIED, "sslrootcert": str(ca)}
    return parts._replace(query=urllib.parse.urlencode(query)).geturl()
