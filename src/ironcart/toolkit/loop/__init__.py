"""The heart: pull a batch, deal with it in one transaction, publish, then ack.

A handler is one function: batch in, one outcome for each message out. The loop opens the
transaction, drops what the inbox knows, appends what the outcomes emit, commits, publishes and
settles. Only the loop catches: an outage makes it wait, a bug makes it split the batch until the
culprit stands alone.
"""

from ironcart.toolkit.loop.consumer import Consumer
from ironcart.toolkit.loop.releases import Releases
from ironcart.toolkit.loop.subscriptions import Chassis, Message, RawSubscription, Subscription
from ironcart.toolkit.loop.verdicts import judge

__all__ = [
    "Chassis",
    "Consumer",
    "Message",
    "RawSubscription",
    "Releases",
    "Subscription",
    "judge",
]
