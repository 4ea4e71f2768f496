"""What the rules of ids.yaml have to find, and what they have to leave alone."""

import secrets
import uuid


def drawn(fact):
    # ruleid: no-chance-in-a-decision
    drawn = str(uuid.uuid4())
    # ruleid: no-random-event-id
    return Envelope(type="OrderCreated", id=drawn, aggregate_id=fact.aggregate_id)


def drawn_for_the_broker(body):
    # ruleid: no-random-event-id, no-chance-in-a-decision
    return Outgoing(secrets.token_hex(16), "orders.created", body, {})


def made(owner, fact):
    # ok: no-random-event-id
    key = event_id(owner, fact.aggregate_id, fact.version)
    # ok: no-random-event-id, no-chance-in-a-decision
    return Envelope(type="OrderCreated", id=str(key), aggregate_id=fact.aggregate_id)
