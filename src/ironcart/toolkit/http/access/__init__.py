"""Who may come in: API keys, bearer tokens, what their callers may do, and how much of it."""

from ironcart.toolkit.http.access.callers import ANONYMOUS, Caller, Scope
from ironcart.toolkit.http.access.gate import Gate, Pass

__all__ = ["ANONYMOUS", "Caller", "Gate", "Pass", "Scope"]
