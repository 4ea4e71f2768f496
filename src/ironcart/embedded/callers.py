"""Keys for the callers of a system on one machine: one for each scope, made on first use."""

from pathlib import Path

from ironcart.embedded.folder import write_file
from ironcart.embedded.process import CannotStart
from ironcart.toolkit.http.access.apikeys import hash_of, new_key, read_file, written
from ironcart.toolkit.http.access.callers import Scope
from ironcart.toolkit.outcomes import Refused

KEYS_FILE = "api-keys.json"
# Whoever runs the system is not to be held up by it.
RATE_PER_S = 100_000.0


def caller_keys(folder: Path) -> dict[str, str]:
    """Return a key for each scope, by its name; services are told of them by `KEYS_FILE`.

    Keys that a person has added to that file stay. Raises `CannotStart` when it is damaged.
    """
    path = folder / KEYS_FILE
    try:
        entries = [*read_file(path).keys] if path.exists() else []
    except Refused as error:
        raise CannotStart(str(error)) from None
    hashes = {entry.sha256 for entry in entries}
    found = {}
    for scope in Scope:
        kept = folder / f"{scope}.apikey"
        key = kept.read_text().strip() if kept.exists() else ""
        if hash_of(key.encode()).hex() not in hashes:
            key, entry = new_key(f"up-{scope}", scope, rate_per_s=RATE_PER_S)
            write_file(kept, key + "\n")
            entries.append(entry)
        found[scope.value] = key
    write_file(path, written(entries))
    return found
