"""Parts of a batch: what cannot be read is set aside before what comes after it is dealt with."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ironcart.toolkit.broker import Delivery
from ironcart.toolkit.loop.parking import known_as
from ironcart.toolkit.loop.reading import is_told_by, kind_of, read
from ironcart.toolkit.loop.subscriptions import Message, Subscription
from ironcart.toolkit.loop.verdicts import Term
from ironcart.toolkit.outcomes import Poison


@dataclass(slots=True)
class Part:
    """Messages to be set aside first, those to be dealt with then, and our own words."""

    own: list[Delivery] = field(default_factory=list)
    terms: list[Term] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)


def parts(batch: Sequence[Delivery], subscription: Subscription) -> Iterator[Part]:
    """Read a batch, and split it where a message that cannot be read follows one of its aggregate.

    Mostly that is one part, whatever else is in the batch.
    """
    part, seen = Part(), set[str]()
    for delivery in batch:
        if subscription.own and is_told_by(subscription.own, delivery.body):
            part.own.append(delivery)
            continue
        try:
            message = read(delivery, subscription.kinds, subscription.aggregate_of)
        except Poison as error:
            if known_as(delivery)[1] in seen:
                yield part
                part, seen = Part(), set()
            kind = kind_of(delivery, subscription.kinds)
            part.terms.append(Term(delivery, kind, str(error), str(error), 0))
        else:
            part.messages.append(message)
            seen.add(message.envelope.aggregate_id)
    yield part
