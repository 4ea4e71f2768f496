"""Orders over HTTP: place, read, list, cancel and follow."""

from ironcart.services.orders.api.documents import endpoints
from ironcart.services.orders.api.door import Door, Doorstep, looking
from ironcart.services.orders.api.following import COMMENT_EVERY_S, Changes, Follower
from ironcart.services.orders.api.headers import read_wait_s
from ironcart.services.orders.api.reads import Reads
from ironcart.services.orders.api.routes import Api
from ironcart.services.orders.api.yielding import GiveWay

__all__ = [
    "COMMENT_EVERY_S",
    "Api",
    "Changes",
    "Door",
    "Doorstep",
    "Follower",
    "GiveWay",
    "Reads",
    "endpoints",
    "looking",
    "read_wait_s",
]
