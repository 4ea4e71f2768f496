"""Checkpoints in an object store, as an auditor reads them: by GET, an object each."""

import asyncio
import urllib.parse
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

import aiohttp

from ironcart.verify.facts import CannotReadError

TIMEOUT_S = 30.0
AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class Store:
    """Objects named 00000000000000000001.json and on, below `url`; a query in it is kept."""

    url: str
    headers: Mapping[str, str]

    async def last(self, first: int, known: int) -> int:
        """The highest number that is there; `known` is tried first, so that one which is missing
        before it does not pass for the end."""
        async with self._session() as session:
            known_is_there = known >= first and await self._get(session, known) is not None
            step, there = 1, known if known_is_there else first - 1
            while await self._get(session, there + step) is not None:
                there += step
                step *= 2
            while step > 1:
                step //= 2
                if await self._get(session, there + step) is not None:
                    there += step
            return there

    async def lines(self, first: int, last: int) -> AsyncIterator[tuple[bytes, str]]:
        """Give each object and its name; a missing one is an empty line."""
        async with self._session() as session:
            for begin in range(first, last + 1, AT_ONCE):
                numbers = range(begin, min(begin + AT_ONCE, last + 1))
                found = await asyncio.gather(*(self._get(session, each) for each in numbers))
                for number, line in zip(numbers, found, strict=True):
                    yield line or b"", f"{number:020d}.json"

    def _session(self) -> aiohttp.ClientSession:
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        return aiohttp.ClientSession(timeout=timeout, headers=self.headers)

    async def _get(self, session: aiohttp.ClientSession, number: int) -> bytes | None:
        parts = urllib.parse.urlsplit(self.url)
        path = f"{parts.path.rstrip('/')}/{number:020d}.json"
        try:
            url = parts._replace(path=path).geturl()
            # The headers are for this store, and for nobody that it names.
            async with session.get(url, allow_redirects=False) as answer:
                if answer.status == 404:
                    return None
                if answer.status != 200:
                    raise CannotReadError(f"{parts.hostname} answers {answer.status}")
                return (await answer.read()).rstrip(b"\n")
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise CannotReadError(f"{parts.hostname}: {error!r}") from None
