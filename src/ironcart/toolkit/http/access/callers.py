"""Who calls: an id that orders and idempotency keys belong to, and a scope: what it may do."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Scope(StrEnum):
    """What a caller may do: an operator everything, a storefront what concerns its own orders."""

    STOREFRONT = "storefront"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Caller:
    """One caller; several keys of one name are one caller, so that a key can be replaced."""

    id: str
    scope: Scope | None

    def may(self, needed: Scope | None) -> bool:
        """Whether a route that needs this scope (None: none at all) is open to the caller."""
        return needed is None or self.scope in (needed, Scope.OPERATOR)

    def sees(self, owner: str | None) -> bool:
        """Whether what `owner` has placed is shown to the caller."""
        return self.scope is Scope.OPERATOR or self.id == owner


# Everybody, while authentication is off.
ANONYMOUS: Final = Caller("anonymous", Scope.OPERATOR)
# Who came in where nobody is asked.
STRANGER: Final = Caller("stranger", None)


class BadToken(Exception):
    """A token is not good; the text says why, and nothing of what is in it."""


class UnknownKey(BadToken):
    """The issuer may have a new key that is not known here yet."""
