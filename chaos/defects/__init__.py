"""Seeded defects: each takes one defence away, and the harness has to notice.

They live outside the product: `inside/` is put on the path of the processes of a system, which are
otherwise the same.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Defect:
    """A defence that is taken away, the rows that expose it, and what is done to the database.

    A broken invariant has to give it away; `by_proof`: a row that misses its proof will do.
    """

    name: str
    rows: tuple[str, ...]
    sql: str = ""
    environ: tuple[tuple[str, str], ...] = ()
    by_proof: bool = False


KILLED = "kill -9 inventory in its transaction"
CANCELLED = "cancelled in the middle of a charge"
LOST = "cancelled while the answer"
POWER = "power loss"

DEFECTS = (
    Defect("no inbox", ("events published twice",), by_proof=True),
    Defect("ack before commit, no look back", (KILLED,)),
    Defect("no sweeper", ("broker held down",)),
    Defect("one-shot charge, a key per attempt", ("gateway acts, answer lost",)),
    Defect("voided without asking the gateway", (LOST,)),
    Defect("refunded without asking the gateway", (CANCELLED,)),
    Defect(
        "reserved without looking",
        ("orders at once",),
        "ALTER TABLE inventory.stock DROP CONSTRAINT never_oversold",
    ),
    Defect("idempotency key ignored", ("SIGSTOP orders",)),
    Defect("another body under a used key", ("SIGSTOP audit", "SIGSTOP notifications")),
    Defect("answered 202 without storing", ("kill -9 Postgres",)),
    Defect("audit skips messages", ("SIGTERM audit",)),
    Defect("audit does not chain", ("SIGTERM audit",)),
    Defect("a new Message-ID for each attempt", ("kill -9 notifications in its transaction",)),
    Defect("dead letter not written", ("corrupt events",)),
    Defect("an outage is poison", ("kill -9 Postgres",)),
    Defect("stock of cancelled orders kept", (CANCELLED,)),
    Defect(
        "broker acknowledges before syncing",
        (POWER,),
        environ=(("IRONCART_ALLOW_UNSAFE_BROKER", "true"),),
    ),
    Defect("database commits before syncing, no recovery", (POWER,)),
)
