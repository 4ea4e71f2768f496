"""What a service says to the loop: which messages it takes, and who deals with them."""

import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec import Struct

from ironcart.toolkit import telemetry
from ironcart.toolkit.broker import Broker, Delivery
from ironcart.toolkit.database import Connection, Database, Transaction
from ironcart.toolkit.envelope import Envelope
from ironcart.toolkit.history import Cause, History, Outbox
from ironcart.toolkit.outcomes import Outcome
from ironcart.toolkit.resilience import Backoff
from ironcart.toolkit.topology import Durable


class Message(Struct, frozen=True):
    """A decoded event: `data` is the struct of its type, `cause` what its consequences carry."""

    key: uuid.UUID
    envelope: Envelope
    data: Any
    delivery: Delivery
    cause: Cause


Handler = Callable[[Sequence[Message], Transaction], Awaitable[Sequence[Outcome]]]
RawHandler = Callable[[Sequence[Delivery], Connection], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Subscription:
    """A durable consumer and who deals with its messages.

    `kinds` are the structs it understands by subject; what is anything else is parked, and so is
    an event whose data is not about its aggregate, by `aggregate_of`. What `own` has told, if that
    is given, is acknowledged unread: its history knows.
    """

    durable: Durable
    kinds: Mapping[str, type[Struct]]
    aggregate_of: Callable[[Any], str]
    handle: Handler
    own: str = ""


@dataclass(frozen=True, slots=True)
class RawSubscription:
    """A durable consumer whose handler takes every message as it is, and parks nothing.

    The handler itself must make a repeat harmless.
    """

    durable: Durable
    handle: RawHandler


@dataclass(frozen=True, slots=True)
class Chassis:
    """What every loop of a service stands on."""

    service: str
    broker: Broker
    database: Database
    history: History
    outbox: Outbox
    tracing: telemetry.Tracing
    backoff: Backoff = field(default_factory=Backoff)
