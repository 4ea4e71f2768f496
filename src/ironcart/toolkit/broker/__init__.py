"""The broker as the toolkit uses it: connection, atomic publisher, puller."""

from ironcart.toolkit.broker.connection import Broker, BrokerError, Outgoing
from ironcart.toolkit.broker.provisioning import compare, ensure
from ironcart.toolkit.broker.publisher import publish
from ironcart.toolkit.broker.puller import Delivery, Puller

__all__ = [
    "Broker",
    "BrokerError",
    "Delivery",
    "Outgoing",
    "Puller",
    "compare",
    "ensure",
    "publish",
]
