"""Checkpoints in an object store, an object each, by HTTP: PUT that never replaces, and GET.

The store has to know `If-None-Match: *`, as S3, MinIO, Azure Blob and others do. What it wants to
see in a request's headers comes from a file, so that whoever renews a token only writes that file.
Headers that are the same for each request cannot sign one, so S3 and MinIO need a proxy that does.
A missing object has to be a 404: S3 says 403 to who may not list the bucket, and nothing is signed.
"""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from pathlib import Path

import aiohttp
from yarl import URL

from ironcart.services.audit.gateway import Sheet
from ironcart.toolkit.outcomes import Unavailable

CALL_TIMEOUT_S = 10.0
OBJECT_BYTES_MAX = 64 * 1024
READ_MAX = 1_000
# There is one already, or somebody else is writing it at this moment.
TAKEN = (HTTPStatus.CONFLICT, HTTPStatus.PRECONDITION_FAILED)


class Objects:
    """An object store below `url`; a query in it, as of a shared access signature, is kept."""

    def __init__(self, url: str, headers_file: Path | None) -> None:
        self._url, self._headers_file = URL(url), headers_file
        self._open_session: aiohttp.ClientSession | None = None

    async def last(self, number_max: int) -> int:
        """The highest number that is there, up to `number_max`; they were added in order."""
        there, missing = 0, number_max + 1
        at = number_max
        while there + 1 < missing:
            if await self._get(at) is not None:
                there = at
            else:
                missing = at
            at = (there + missing) // 2
        return there

    async def after(self, number: int) -> list[str]:
        """Some of the lines above a number, oldest first."""
        found: list[str] = []
        while len(found) < READ_MAX:
            line = await self._get(number + len(found) + 1)
            if line is None:
                break
            found.append(line)
        return found

    async def add(self, sheets: Sequence[Sheet]) -> int | None:
        """Add these, in order, if the one before them is there; returns the highest of them.

        Lower when it is not there, and None when another object of a number is there.
        """
        before = sheets[0].number - 1
        if before and await self._get(before) is None:
            return await self.last(before)
        for sheet in sheets:
            status, _ = await self._ask("PUT", sheet.number, f"{sheet.line}\n".encode())
            if status in TAKEN:
                kept = await self._get(sheet.number)
                if kept is None:
                    raise Unavailable(f"the store of checkpoints answers {status} to a new object")
                if kept != sheet.line:
                    return None
            elif not HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
                raise Unavailable(f"the store of checkpoints answers {status}")
        return sheets[-1].number

    async def close(self) -> None:
        """Close kept connections."""
        if self._open_session is not None:
            await self._open_session.close()

    async def _get(self, number: int) -> str | None:
        status, body = await self._ask("GET", number)
        if status == HTTPStatus.NOT_FOUND:
            return None
        if status != HTTPStatus.OK:
            raise Unavailable(f"the store of checkpoints answers {status}")
        return body.decode(errors="replace").rstrip("\n")

    async def _ask(self, method: str, number: int, body: bytes | None = None) -> tuple[int, bytes]:
        headers = dict(self._headers())
        if body is not None:
            headers |= {"If-None-Match": "*", "Content-Type": "application/json"}
        url = self._url.with_path(
            f"{self._url.path.rstrip('/')}/{number:020d}.json", keep_query=True
        )
        try:
            async with self._session().request(
                method, url, data=body, headers=headers, allow_redirects=False
            ) as answer:
                kept = b""
                while chunk := await answer.content.read(OBJECT_BYTES_MAX - len(kept)):
                    kept += chunk
                return answer.status, kept
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            # Of the address only the host is told: the rest may be a secret.
            where = self._url.host
            raise Unavailable(f"the store of checkpoints at {where}: {type(error).__name__}") from (
                error
            )

    def _headers(self) -> Mapping[str, str]:
        if self._headers_file is None:
            return {}
        try:
            lines = self._headers_file.read_text().splitlines()
        except OSError as error:
            raise Unavailable(f"{self._headers_file}: {error.strerror}") from error
        except ValueError as error:
            raise Unavailable(f"{self._headers_file} is not UTF-8") from error
        pairs = [line.partition(":") for line in lines if line.strip()]
        return {name.strip(): value.strip() for name, _, value in pairs}

    def _session(self) -> aiohttp.ClientSession:
        if self._open_session is None:
            self._open_session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=CALL_TIMEOUT_S),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._open_session
