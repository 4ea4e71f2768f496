"""Dead letters: a message that can never succeed, set aside whole with the reason.

The original bytes are the body; why and from where are headers. The dead letter is acknowledged by
its stream before the message is terminated, so a crash in between repeats it, deduplicated.
"""

import base64
import json
import re
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from msgspec import Struct

from ironcart.toolkit.broker import Broker, BrokerError, Delivery, Outgoing, publish
from ironcart.toolkit.topology import DEAD_LETTERS

UNKNOWN_TYPE = "unknown"
REASON_CHARACTERS_MAX = 500
ERROR_CHARACTERS_MAX = 2_000
ORIGINAL_HEADER_BYTES_MAX = 16_000
MESSAGE_NOT_FOUND = 10037
_NUMBER = "[0-9]{1,19}"


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """What was set aside, and why; `seq` is its own place among the dead letters."""

    seq: int
    service: str
    type: str
    reason: str
    error: str
    attempts: int
    stream: str
    stream_seq: int
    subject: str
    headers: Mapping[str, str]
    body: bytes
    parked_at: str


def dead_letter(
    service: str, delivery: Delivery, kind: str, *, reason: str, error: str, attempts: int
) -> Outgoing:
    """Write the dead letter of one message; `kind` is a known type or `UNKNOWN_TYPE`."""
    # ASCII, with escapes that are JSON's own: what fits into a header can also be read back.
    original = json.dumps(dict(delivery.headers), separators=(",", ":"))
    if len(original) > ORIGINAL_HEADER_BYTES_MAX:
        original = '{"Ironcart-Note":"the original headers were too large to keep"}'
    headers = {
        "Ironcart-Service": service,
        "Ironcart-Type": kind,
        "Ironcart-Reason": _one_line(reason, REASON_CHARACTERS_MAX),
        "Ironcart-Error": _one_line(error, ERROR_CHARACTERS_MAX),
        "Ironcart-Attempts": str(attempts),
        "Ironcart-Stream": delivery.stream,
        "Ironcart-Stream-Sequence": str(delivery.stream_seq),
        "Ironcart-Subject": delivery.subject,
        "Ironcart-Parked-At": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "Ironcart-Headers": _one_line(original, ORIGINAL_HEADER_BYTES_MAX),
    }
    message_id = f"dlq:{delivery.stream}:{service}:{delivery.stream_seq}"
    return Outgoing(message_id, f"dlq.{service}.{kind}", delivery.body, headers)


async def park(broker: Broker, letter: Outgoing) -> int:
    """Have a dead letter kept; returns its place once its stream has it, else raises `Unavailable`.

    A repeat, within the stream's memory of ids, gives the same place.
    """
    (seq,) = await publish(broker, [letter])
    return seq


async def read(broker: Broker, first_seq: int = 1) -> AsyncIterator[DeadLetter]:
    """Go through the dead letters from `first_seq` on, oldest first."""
    seq = first_seq
    while (letter := await _next(broker, seq)) is not None:
        yield letter
        seq = letter.seq + 1


async def find(broker: Broker, seq: int) -> DeadLetter | None:
    """Look one dead letter up by its sequence."""
    letter = await _next(broker, seq)
    return letter if letter is not None and letter.seq == seq else None


async def _next(broker: Broker, seq: int) -> DeadLetter | None:
    try:
        found = await broker.api(
            f"STREAM.MSG.GET.{DEAD_LETTERS}", {"seq": seq, "next_by_subj": "dlq.>"}
        )
    except BrokerError as error:
        if error.err_code == MESSAGE_NOT_FOUND:
            return None
        raise
    return _parse(found["message"])


def _parse(message: Mapping[str, Any]) -> DeadLetter:
    lines = base64.b64decode(message.get("hdrs", "")).decode(errors="replace").split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines if ": " in line)
    return DeadLetter(
        seq=message["seq"],
        service=headers.get("Ironcart-Service", ""),
        type=headers.get("Ironcart-Type", UNKNOWN_TYPE),
        reason=headers.get("Ironcart-Reason", ""),
        error=headers.get("Ironcart-Error", ""),
        attempts=_number(headers.get("Ironcart-Attempts", "")),
        stream=headers.get("Ironcart-Stream", ""),
        stream_seq=_number(headers.get("Ironcart-Stream-Sequence", "")),
        subject=headers.get("Ironcart-Subject", ""),
        headers=_original(headers.get("Ironcart-Headers", "")),
        body=base64.b64decode(message.get("data", "")),
        parked_at=headers.get("Ironcart-Parked-At", ""),
    )


def _number(text: str) -> int:
    """Read a number of ours; what somebody else has written there is 0, and hides no letter."""
    return int(text) if re.fullmatch(_NUMBER, text) else 0


def _original(text: str) -> dict[str, str]:
    try:
        return msgspec.json.decode(text, type=dict[str, str])
    except (msgspec.MsgspecError, RecursionError):
        return {}


def _one_line(text: str, characters_max: int) -> str:
    """Fit text into a header: printable ASCII, one line; a NATS header ends at a line break."""
    clean = text.encode("ascii", "backslashreplace").decode()
    return "".join(c if c.isprintable() else " " for c in clean)[:characters_max].strip()


class DeadLetterEdited(Struct, frozen=True):
    """A person has changed what is to be replayed; the original stays. No body is told."""

    service: str
    stream: str
    stream_seq: int
    event_id: str
    by: str
    why: str
    body_sha256: str


class DeadLetterReplayed(Struct, frozen=True):
    """A person has let a message, and what waits behind it, be dealt with again."""

    service: str
    stream: str
    stream_seq: int
    event_id: str
    by: str
    why: str
    replays: int


class DeadLetterDiscarded(Struct, frozen=True):
    """A person has decided that a message is never dealt with; what waits behind it goes on."""

    service: str
    stream: str
    stream_seq: int
    event_id: str
    by: str
    why: str


class CustomerForgotten(Struct, frozen=True):
    """A person has had a customer's key destroyed: what it encrypted cannot be read any more."""

    customer_id: str
    by: str
    why: str


# What a person does is told on the stream of dead letters, by the service concerned.
ACTIONS: Final[Mapping[str, str]] = {
    DeadLetterEdited.__name__: "deadletters.edited",
    DeadLetterReplayed.__name__: "deadletters.replayed",
    DeadLetterDiscarded.__name__: "deadletters.discarded",
    CustomerForgotten.__name__: "deadletters.customer_forgotten",
}


def letter_aggregate(service: str, seq: int) -> str:
    """The aggregate of what is done about one dead letter."""
    return f"dlq-{service}-{seq}"
