"""What was signed last, in a file beside the key."""

import asyncio
from pathlib import Path

from ironcart.toolkit import signing
from ironcart.toolkit.outcomes import Unavailable


async def remember(path: Path, mark: signing.Mark) -> None:
    """Write it, synced before it returns; raises `Unavailable`, and what was there stays."""
    try:
        await asyncio.to_thread(signing.remember, path, mark)
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}") from error
