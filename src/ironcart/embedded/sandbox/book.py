"""The ledger on disk, with the idempotency keys: a change is written before it is true."""

import secrets
from pathlib import Path

import msgspec
from msgspec.structs import replace

from ironcart.embedded.sandbox.journal import Journal, JournalError
from ironcart.embedded.sandbox.ledger import Ledger, LedgerBrokenError
from ironcart.embedded.sandbox.records import Change

ID_RANDOM_BYTES = 12


class Book:
    """Ledger, journal and keys in step. Keys live `key_life_s` seconds, as Stripe's live a day.

    Only the offset of a key's change is kept in memory; a replay reads the change from the file.
    """

    def __init__(self, path: Path, key_life_s: float) -> None:
        self.ledger = Ledger(lambda prefix: f"{prefix}_{secrets.token_hex(ID_RANDOM_BYTES)}")
        self._key_life_s = key_life_s
        self._keys: dict[str, int] = {}
        self._encoder = msgspec.json.Encoder()
        self._decoder = msgspec.json.Decoder(Change)
        self._journal = Journal(path)
        for offset, line in self._journal.lines():
            try:
                change = self._decoder.decode(line)
                self.ledger.admit(change)
                self._index(change, offset)
            except (msgspec.DecodeError, LedgerBrokenError) as error:
                message = (
                    f"{path} is damaged at byte {offset} ({error}); move it away to start anew"
                )
                raise JournalError(message) from error

    def record(self, change: Change, key: str | None, fingerprint: str | None) -> Change:
        """Write the change under its key, then make it true; returns it as it was written."""
        intent = change.intent
        if key is not None and intent is not None and key not in intent.keys:
            intent = replace(intent, keys=(*intent.keys, key))
        stamped = replace(change, intent=intent, key=key, fingerprint=fingerprint)
        self.ledger.admit(stamped, self._write)
        return stamped

    def saved(self, key: str, now: float) -> Change | None:
        """What this key was first used for; None when it is new or its life is over."""
        offset = self._keys.get(key)
        if offset is None:
            return None
        change = self._decoder.decode(self._journal.read(offset))
        if now - change.at >= self._key_life_s:
            del self._keys[key]
            return None
        return change

    def expire_keys(self, now: float) -> int:
        """Forget every key, for good; returns how many there were."""
        forgotten = len(self._keys)
        self.record(Change(now, keys_expired=True), None, None)
        return forgotten

    def close(self) -> None:
        """Close the file."""
        self._journal.close()

    def _write(self, change: Change) -> None:
        self._index(change, self._journal.append(self._encoder.encode(change)))

    def _index(self, change: Change, offset: int) -> None:
        if change.keys_expired:
            self._keys.clear()
        elif change.key is not None:
            self._keys[change.key] = offset
