"""I8: the audit trail has every message of every stream, unchanged, in a chain that adds up."""

import hashlib

from ironcart.verify.chain import VERSION_OF_BODIES, VERSIONS, Entry, genesis, is_named_right, link
from ironcart.verify.checks.histories import Histories
from ironcart.verify.facts import DEAD_LETTERS, Event, StreamFacts
from ironcart.verify.findings import Faults, Finding
from ironcart.verify.wire import key_of, read_event


class Trail:
    """Takes the entries stream by stream in sequence order and holds each against the stream.

    In a moving system a stream's trail may end early, and is read up to its first gap or missing
    link; what lies beyond waits for a message that is still under way. A stream that was made again
    begins above every sequence of its older self: what the trail has of that is kept by event id,
    to be found again in the stream, and what it never saw has an entry that says so.
    """

    def __init__(self, streams: dict[str, StreamFacts], *, moving: bool = False) -> None:
        self.streams = streams
        self.moving = moving
        self._ended: set[str] = set()
        self.entries = 0
        self.older: list[Event] = []
        self.older_counts: dict[str, int] = {}
        self.never_seen = 0
        self.faults = Faults()
        self._at: dict[str, int] = {}
        self._hash: dict[str, bytes] = {}

    def add(self, entry: Entry) -> None:
        """Check one entry: its link to the one before, and the message it copies."""
        where = f"{entry.stream} {entry.seq}"
        if self.moving and (entry.hash is None or self._is_gap(entry)):
            self._ended.add(entry.stream)
        if entry.stream in self._ended:
            return
        previous = self._hash.get(entry.stream) or genesis(entry.stream)
        if entry.hash is None:
            self.faults.add("no link in the chain", where)
        elif entry.version not in VERSIONS or entry.hash != link(previous, entry):
            self.faults.add("the chain does not add up", where)
        elif entry.version == VERSION_OF_BODIES and not is_named_right(entry):
            self.faults.add("audited under another type or aggregate", where)
        # Going on from what is stored shows each broken link once, not all that follow it.
        self._hash[entry.stream] = entry.hash or link(previous, entry)
        facts = self.streams.get(entry.stream)
        if facts is None:
            self.faults.add("of a stream that does not exist", where)
        elif entry.seq < facts.first_seq:
            self._keep_older(entry)
        elif entry.seq <= facts.last_seq:
            self.entries += 1
            self._compare(facts, entry, where)

    def _keep_older(self, entry: Entry) -> None:
        self.older_counts[entry.stream] = self.older_counts.get(entry.stream, 0) + 1
        if not entry.subject:
            self.never_seen += 1
            return
        event = read_event(entry.stream, entry.seq, entry.subject, entry.body)
        if event.valid:
            self.older.append(event)

    def _is_gap(self, entry: Entry) -> bool:
        facts = self.streams.get(entry.stream)
        index = self._at.get(entry.stream, 0)
        return bool(facts and index < len(facts.events) and facts.events[index].seq < entry.seq)

    def _compare(self, facts: StreamFacts, entry: Entry, where: str) -> None:
        index = self._at.get(entry.stream, 0)
        events = facts.events
        while index < len(events) and events[index].seq < entry.seq:
            self.faults.add("not in the audit trail", f"{entry.stream} {events[index].seq}")
            index += 1
        if index == len(events) or events[index].seq != entry.seq:
            self.faults.add("in the audit trail, not in the stream", where)
        else:
            event = events[index]
            index += 1
            if event.subject != entry.subject:
                self.faults.add("audited under another subject", where)
            if event.digest != hashlib.sha256(entry.body).digest():
                self.faults.add("audited with other bytes", where)
            # Where a message is no event, audit may have read less of it than we did.
            named = key_of(entry.event_id)
            if named != event.id and (event.valid or (named and event.id)):
                self.faults.add("audited under another event id", where)
        self._at[entry.stream] = index

    def finish(self) -> None:
        """Count what the trail ends before; call once, after the last entry."""
        if self.moving:
            return
        for name, facts in self.streams.items():
            for event in facts.events[self._at.get(name, 0) :]:
                self.faults.add("not in the audit trail", f"{name} {event.seq}")


def audit(trail: Trail, histories: Histories) -> Finding:
    """I8: audit = stream = union of the services' histories, by id and by bytes; chain intact."""
    letters = {letter.event_id for letter in histories.dead_letters} - {b""}
    # Dead letters are lost with their stream; the trail remembers which there were.
    letters |= {event.id for event in trail.older if event.stream == DEAD_LETTERS}
    strangers, copies = histories.strangers(letters)
    faults = Faults()
    for gathered in (trail.faults, histories.contents, strangers):
        faults.merge(gathered)
    _compare_older(trail, histories, letters, faults)
    return Finding(
        "I8",
        "audit",
        "audit.entries, audit.links, the streams, every service's events",
        {
            "audited": trail.entries,
            "in streams": sum(len(facts.events) for facts in trail.streams.values()),
            "in histories": histories.rows,
            "published again": copies,
            "of older streams": sum(trail.older_counts.values()),
            "never seen": trail.never_seen,
        },
        faults,
    )


def _compare_older(trail: Trail, histories: Histories, letters: set[bytes], faults: Faults) -> None:
    """What was audited of a stream that is gone has to be in the one that took its place."""
    for event in trail.older:
        if event.stream == DEAD_LETTERS or event.id in letters:
            continue
        now = histories.first[event.stream].get(event.id)
        where = f"{event.stream} {event.seq} {event.type} {event.aggregate}"
        if now is None:
            faults.add("audited before the stream was made again, not published again", where)
        elif now.digest != event.digest:
            faults.add("published again with other bytes than were audited", where)
