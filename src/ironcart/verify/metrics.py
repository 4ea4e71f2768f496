"""Reading the services' own /metrics; a service that does not answer is left out."""

import asyncio
import ssl
from collections.abc import Mapping

import aiohttp

TIMEOUT_S = 5.0


async def read_metrics(
    urls: Mapping[str, str], tls: ssl.SSLContext | None = None
) -> dict[str, dict[str, float]]:
    """Return the samples of each service that answers, by name and labels as they are written."""
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    connector = aiohttp.TCPConnector(ssl=tls or True)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        pages = await asyncio.gather(*(_page(session, url) for url in urls.values()))
    return {
        service: samples_of(page)
        for service, page in zip(urls, pages, strict=True)
        if page is not None
    }


async def _page(session: aiohttp.ClientSession, url: str) -> str | None:
    try:
        async with session.get(f"{url}/metrics") as response:
            return await response.text() if response.status == 200 else None
    except (aiohttp.ClientError, OSError, TimeoutError):
        return None


def samples_of(page: str) -> dict[str, float]:
    """Read Prometheus's text format; what is no sample is passed over."""
    samples = {}
    for line in page.splitlines():
        sample, _, value = line.rpartition(" ")
        if sample and not line.startswith("#"):
            try:
                samples[sample] = float(value)
            except ValueError:
                continue
    return samples
