"""Public addresses only: a stranger's URL must not reach what only this machine can reach.

The check is made on the address that is about to be connected to, so it does not matter what a
name meant when it was looked up before.
"""

import asyncio
import ipaddress
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

_LABEL: Final = "[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_PORT: Final = (
    "([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
)
_PLACE: Final = "([A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*"
_URL: Final = re.compile(rf"https?://{_LABEL}(\.{_LABEL})*(:{_PORT})?([/?]{_PLACE})?\Z")
# More than these wait for each other; a name server that is away must hold up nobody else.
LOOKUPS_MAX: Final = 16
# Not for the public, though `ipaddress` says so, or a way to an IPv4 address that is not.
_NOT_PUBLIC: Final = tuple(
    ipaddress.ip_network(network)
    for network in (
        "192.0.0.0/24",  # protocol assignments
        "168.63.129.16/32",  # a cloud's own services, from inside its machines
        "64:ff9b::/96",  # NAT64
        "fec0::/10",  # site-local
        "2002::/16",  # 6to4
    )
)


class NotPublic(OSError):
    """The address is loopback, private, link-local, multicast, reserved or unspecified."""


def is_public(address: str) -> bool:
    """Say whether anybody on the internet may be at this address; raises `ValueError` for names."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
        return False
    return (
        ip.is_global
        and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified or ip.is_loopback)
        and not any(ip in network for network in _NOT_PUBLIC)
    )


def may_be_called(url: str, *, allow_private: bool) -> bool:
    """Say whether a URL is one that deliveries can go to, as far as it can be told by its looks.

    That is HTTP or HTTPS, a host, no user and no fragment, nothing but ASCII. A private address is
    seen when it is written as one; a name is judged when it is connected to.
    """
    if not _URL.match(url):
        return False
    host = URL(url, encoded=True).host or ""
    try:
        return allow_private or is_public(host)
    except ValueError:
        return True


def public_socket(address_info: tuple[Any, ...]) -> socket.socket:
    """Open a socket for the address that is about to be connected to; raises `NotPublic`."""
    family, kind, protocol, _, address = address_info
    if not is_public(address[0]):
        raise NotPublic("the address is not public")
    return socket.socket(family, kind, protocol)


class Resolver(AbstractResolver):
    """Looks names up on threads of its own: the loop's are needed to reach the mail server."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(LOOKUPS_MAX, "webhook-names")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Look a name up; raises `OSError`."""
        look_up = partial(socket.getaddrinfo, host, port, family, socket.SOCK_STREAM)
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._threads, look_up)
        except UnicodeError as error:
            raise OSError("not a host name") from error
        return [
            ResolveResult(
                hostname=host,
                host=str(address[0]),
                port=port,
                family=each,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for each, _, protocol, _, address in found
        ]

    async def close(self) -> None:
        """Begin no further look-up."""
        self._threads.shutdown(wait=False, cancel_futures=True)
