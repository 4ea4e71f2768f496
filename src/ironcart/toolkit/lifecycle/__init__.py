"""The life of one service: start, be ready, drain on SIGTERM, and end with a code that tells.

Losing the broker or the database does not end a process; a refused credential does (exit 1, with a
message). A drain: not ready, stop pulling, finish what is in hand, publish, ack, close (exit 0).
One that takes too long is forced (exit 1).
"""

from ironcart.toolkit.lifecycle.life import run
from ironcart.toolkit.lifecycle.service import Service, Settings, Wiring

__all__ = ["Service", "Settings", "Wiring", "run"]
