"""The services' own histories held against the stream: same facts, same bytes, same places."""

import hashlib
import json
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass

from ironcart.verify.facts import DEAD_LETTERS, OWNERS, DeadLetter, Event, StreamFacts
from ironcart.verify.findings import Faults
from ironcart.verify.wire import mentioned, read_event, show_id

STREAM_OF = {service: stream for stream, service in OWNERS.items()}
# What was done about a dead letter is told in the stream of dead letters, whoever's it was.
REPAIRS = ("deadletters.", "dlq.")
EDITED = "deadletters.edited"
KNOWN_BY_BODY = (
    *("valid", "type", "aggregate", "version", "cause", "traced", "flaw"),
    *("lines", "money", "delta", "basket", "notice"),
)


@dataclass(frozen=True, slots=True)
class Recorded:
    """One row of a service's events table; `seq` is None until it is published."""

    service: str
    id: bytes
    aggregate: str
    subject: str
    version: int
    body: bytes
    place: tuple[int, int]
    seq: int | None


def digest_edited(body: bytes) -> str:
    """Which bytes a person put in the place of others, as the event of it tells."""
    try:
        return str(json.loads(body)["data"]["body_sha256"])
    except (ValueError, KeyError, TypeError):
        return ""


def at(stream: StreamFacts, seq: int) -> Event | None:
    """Return the message at a stream sequence, None when it could not be read."""
    events = stream.events
    index = seq - events[0].seq if events else 0
    if 0 <= index < len(events) and events[index].seq == seq:
        return events[index]
    index = bisect_left(events, seq, key=lambda event: event.seq)
    return events[index] if index < len(events) and events[index].seq == seq else None


class Histories:
    """Takes the rows one by one, marks the events they own, and gathers what does not agree."""

    def __init__(
        self,
        streams: dict[str, StreamFacts],
        dead_letters: Iterable[DeadLetter] = (),
        *,
        moving: bool = False,
    ) -> None:
        self.streams = streams
        self.moving = moving
        self.dead_letters = list(dead_letters)
        letters = {letter.seq for letter in self.dead_letters}
        # Set aside, and perhaps taken in as a person edited them.
        self.refused = {letter.event_id for letter in self.dead_letters} - {b""}
        self.unlike: list[tuple[Event, bytes, str]] = []
        self.edited: set[str] = set()
        self.pending: dict[str, list[Event]] = {}
        self.first = {
            name: mentioned(facts.events) for name, facts in streams.items() if name in OWNERS
        }
        # A dead letter has the bytes of somebody else's event; what was done about it is an event.
        self.first[DEAD_LETTERS] = mentioned(
            event
            for event in (streams[DEAD_LETTERS].events if DEAD_LETTERS in streams else ())
            if event.seq not in letters
        )
        self.rows = 0
        self.highest: dict[str, int] = {}
        self.contents = Faults()
        self.places = Faults()

    def add(self, row: Recorded) -> None:
        """Hold one row against the stream of its service."""
        self.rows += 1
        repairs = row.subject.startswith(REPAIRS)
        name = DEAD_LETTERS if repairs else STREAM_OF.get(row.service, "")
        event = self.first.get(name, {}).get(row.id)
        shown = f"{row.aggregate} version {row.version} of {row.service}"
        if event is None:
            if row.seq is not None or not self.moving:
                self.contents.add("in a service's history, not in the stream", shown)
            if row.seq is None:
                self._expect(name, row)
            return
        if event.owned:
            self.contents.add("twice in the services' histories", shown)
        event.owned = True
        event.recorded = row.place
        # An event from elsewhere may carry no version; then its owner's history gives it one.
        event.version = event.version or row.version
        if row.subject == EDITED:
            self.edited.add(digest_edited(row.body))
        if event.digest != hashlib.sha256(row.body).digest():
            if event.id in self.refused:
                self.unlike.append((event, row.body, shown))
                return
            self.contents.add("the history and the stream have other bytes", shown)
        if event.aggregate != row.aggregate or event.version != row.version:
            self.contents.add("the history and the stream name it otherwise", shown)
        if event.flaw:
            self.contents.add("unreadable data", f"{shown}: {event.flaw}")
        if row.seq is not None:
            self.highest[name] = max(self.highest.get(name, 0), row.seq)
            stored = at(self.streams[name], row.seq)
            if stored is None or stored.id != row.id:
                self.places.add("not at the stream sequence that its history says", shown)

    def settle_edited(self) -> None:
        """Once all rows are held: what was set aside counts as the person edited it."""
        for event, body, shown in self.unlike:
            if hashlib.sha256(body).hexdigest() not in self.edited:
                self.contents.add("the history and the stream have other bytes", shown)
            taken = read_event(event.stream, event.seq, event.subject, body)
            for name in KNOWN_BY_BODY:
                setattr(event, name, getattr(taken, name))
            event.version = event.version or 1
        self.unlike.clear()

    def _expect(self, stream: str, row: Recorded) -> None:
        """Keep an event that is committed and not published: its service counts on it already."""
        event = read_event(stream, 0, "", row.body)
        event.owned = True
        event.recorded = row.place
        event.version = event.version or row.version
        self.pending.setdefault(stream, []).append(event)

    def strangers(self, refused: set[bytes]) -> tuple[Faults, int]:
        """Return events of the streams that no history has, and how many were only copies.

        `refused` are the ids that were dead-lettered: those may be in no history. In a moving
        system what follows the last sequence of the histories is younger than they are.
        """
        faults = Faults()
        copies = 0
        for name, first in self.first.items():
            for event in self.streams[name].events if name in self.streams else ():
                original = first.get(event.id)
                if original is None or not event.valid:
                    continue
                if original is not event:
                    copies += 1
                    if original.digest != event.digest and event.id not in refused:
                        faults.add("same id, other bytes", f"{name} {event.seq}")
                elif self.moving and event.seq > self.highest.get(name, 0):
                    continue
                elif not event.owned and event.id not in refused:
                    faults.add(
                        "in the stream, in no service's history",
                        f"{name} {event.seq} {event.type} {show_id(event.id)}",
                    )
        return faults, copies
