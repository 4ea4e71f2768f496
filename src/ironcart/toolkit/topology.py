"""Streams and durable consumers as data: what `provision` makes and services compare with.

Nothing here is changed by a service. `difference` says in words what is not as declared.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NS_PER_S = 1_000_000_000
PAYLOAD_BYTES_MAX = 1_048_576
MESSAGE_BYTES_MAX = 1_000_000
# A dead letter is a whole message and the headers that say why: still below max_payload.
DEAD_LETTER_HEADER_BYTES_MAX = 32 * 1024
DEAD_LETTER_BYTES_MAX = MESSAGE_BYTES_MAX + DEAD_LETTER_HEADER_BYTES_MAX
DUPLICATE_WINDOW_S = 120
ACK_WAIT_S = 30
ACK_PENDING_MAX = 20_000
PULLS_WAITING_MAX = 512
DEAD_LETTERS = "DEADLETTERS"


@dataclass(frozen=True, slots=True)
class Stream:
    """One stream: who alone writes to it, and the exact subjects."""

    name: str
    owner: str
    subjects: tuple[str, ...]
    message_bytes_max: int = MESSAGE_BYTES_MAX

    def config(self, *, replicas: int, bytes_max: int) -> dict[str, Any]:
        """The stream's configuration as JetStream's API takes it."""
        return {
            "name": self.name,
            "description": f"written by {self.owner} only",
            "subjects": sorted(self.subjects),
            "retention": "limits",
            "storage": "file",
            "discard": "new",
            "num_replicas": replicas,
            "max_bytes": bytes_max,
            "max_msgs": -1,
            "max_age": 0,
            "max_msg_size": self.message_bytes_max,
            "duplicate_window": DUPLICATE_WINDOW_S * NS_PER_S,
            "deny_delete": True,
            "deny_purge": True,
            "allow_atomic": True,
            "allow_direct": True,
        }


@dataclass(frozen=True, slots=True)
class Durable:
    """One durable pull consumer: a service's place in a stream."""

    name: str
    stream: str
    subjects: tuple[str, ...]

    def config(self) -> dict[str, Any]:
        """The consumer's configuration as JetStream's API takes it."""
        return {
            "durable_name": self.name,
            "name": self.name,
            "deliver_policy": "all",
            "ack_policy": "explicit",
            "ack_wait": ACK_WAIT_S * NS_PER_S,
            "max_deliver": -1,
            "max_ack_pending": ACK_PENDING_MAX,
            "max_waiting": PULLS_WAITING_MAX,
            "replay_policy": "instant",
            # As many copies as its stream has.
            "num_replicas": 0,
            "filter_subjects": sorted(self.subjects),
        }


DEAD_LETTER_STREAM = Stream(
    DEAD_LETTERS,
    "every service",
    ("dlq.>", "deadletters.*"),
    message_bytes_max=DEAD_LETTER_BYTES_MAX,
)


def difference(declared: Mapping[str, Any], actual: Mapping[str, Any]) -> list[str]:
    """Say what `actual` has otherwise than `declared`, a phrase a field; the rest is the broker's.

    An absent field counts as the broker's zero, since JetStream leaves those out of its answers.
    """
    found = []
    for field, wanted in declared.items():
        has = actual.get(field)
        if field == "filter_subjects" and has is None and actual.get("filter_subject"):
            has = [actual["filter_subject"]]
        if isinstance(wanted, list):
            has = sorted(has or [])
        if has != wanted and not (has is None and not wanted):
            found.append(f"{field} is {has!r}, declared {wanted!r}")
    return found
