"""The card of a service: what it is called, what it is told, and how it is put together."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

import msgspec
from msgspec import Meta

from ironcart.toolkit.http import Endpoint, Gate
from ironcart.toolkit.http.access.apikeys import RATE_PER_S_MAX, RATE_PER_S_MIN
from ironcart.toolkit.loop import Chassis, RawSubscription, Subscription
from ironcart.toolkit.recovery import Memory
from ironcart.toolkit.tables import Tables
from ironcart.toolkit.topology import Durable

LOOPBACK = ("127.0.0.1", "::1", "localhost")

# Requests a second of a caller for whom nothing else is said.
API_RATE_PER_S = 100.0

Port = Annotated[int, Meta(ge=1, le=65535)]


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """What every service is told by its environment."""

    nats_url: str
    database_url: str
    nats_monitor_url: str = ""
    host: str = "0.0.0.0"  # noqa: S104 - a container listens to its pod
    port: Port = 8080
    auth: Annotated[str, Meta(pattern=r"^(on|off)\Z")] = "on"
    api_keys_file: str = ""
    api_rate_per_s: Annotated[float, Meta(ge=RATE_PER_S_MIN, le=RATE_PER_S_MAX)] = API_RATE_PER_S
    oidc_issuer: str = ""
    oidc_audience: str = ""
    oidc_jwks_url: str = ""
    log_level: Annotated[str, Meta(pattern=r"(?i)^(debug|info|warning|error)\Z")] = "info"
    drain_timeout_s: Annotated[float, Meta(gt=0, le=3600)] = 30.0
    allow_unsafe_broker: bool = False

    def __post_init__(self) -> None:
        if self.auth == "off":
            if self.host not in LOOPBACK:
                raise ValueError(
                    "IRONCART_AUTH=off is for a loopback address: set IRONCART_HOST=127.0.0.1"
                )
        elif not self.api_keys_file and not self.oidc_issuer:
            raise ValueError(
                "nobody could call: set IRONCART_API_KEYS_FILE (`ironcart apikey new --file` writes"
                " one) or IRONCART_OIDC_ISSUER, or set IRONCART_AUTH=off on a loopback address"
            )
        elif self.oidc_issuer and not self.oidc_audience:
            raise ValueError("set IRONCART_OIDC_AUDIENCE: tokens for others are not for us")

    def gate(self) -> Gate | None:
        """Make the gate that callers come through; None while authentication is off.

        Raises `Refused` for a damaged key file, or an issuer's address that is not https.
        """
        if self.auth == "off":
            return None
        return Gate.built(
            self.api_keys_file,
            self.oidc_issuer,
            self.oidc_audience,
            self.oidc_jwks_url,
            rate_per_s=self.api_rate_per_s,
        )


class Loop(Protocol):
    """Something that runs beside the consumers, and finishes what it has begun after `stop`."""

    async def run(self) -> None:
        """Run until stopped."""

    def stop(self) -> None:
        """Begin nothing more."""


@dataclass(slots=True)
class Wiring:
    """What a service is made of, put together by its `app` module.

    `background` runs until everything else has drained, then is cancelled.
    """

    endpoints: Sequence[Endpoint] = ()
    subscriptions: Sequence[Subscription | RawSubscription] = ()
    loops: Sequence[Loop] = ()
    background: Sequence[Callable[[], Awaitable[None]]] = ()
    accepts_without_broker: bool = False
    close: Sequence[Callable[[], Awaitable[None]]] = ()


@dataclass(frozen=True, slots=True)
class Service:
    """The card of a service, as the command line knows it.

    `subjects` maps the types that it emits to where they go; `memory` says how its tables follow
    from what it has published; `tables` says what its role may do with those of its own.
    """

    name: str
    subjects: Mapping[str, str]
    durables: Sequence[Durable]
    settings: type[msgspec.Struct]
    build: Callable[[Chassis, Any, asyncio.Event], Wiring]
    memory: Memory | None = None
    tables: Tables = field(default_factory=dict)
