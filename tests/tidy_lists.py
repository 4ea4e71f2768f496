"""Places that the tidy test excuses, each with its reason."""

import re
from collections.abc import Mapping

# Each exception names a place and says why it is one; a place that is gone must leave the list.
CATCHES_EVERYTHING: Mapping[str, str] = {
    "toolkit/collector.py:Collector._run": "every caller of a batch must hear how it ended",
    "toolkit/http/front.py:_handler.handle": "whatever goes wrong is answered as a problem",
    "toolkit/jobs.py:Jobs._call": "one job's bug must not stop the others",
    "toolkit/jobs.py:Jobs._settle_one": "nor may what it came to",
    "toolkit/loop/consumer.py:Consumer._until_dealt_with": "a raw handler's bug ends no service",
    "toolkit/loop/attempt.py:Attempt.split": "one message's bug must not stop its neighbours",
    "toolkit/loop/releases.py:Releases._deal_with": "nor those of what is dealt with later",
    "toolkit/broker/wire.py:WireClient._tell": "one odd message must not end all reading",
    "services/payments/gateway/connections.py:Connections.post": "drops the line, and raises",
    "services/payments/gateway/connections.py:Connections._open": "closes its socket, and raises",
    "toolkit/resilience.py:Breaker.guard": "sees how a call ended, and raises it again",
    "embedded/folder.py:claim": "gives the lock back, and raises again",
}
STARTS_TASKS: Mapping[str, str] = {
    "toolkit/lifecycle/life.py": "the root of every task group",
    "toolkit/broker/connection.py": "the client's connect outlives a refusal that comes first",
    "embedded/sandbox/webhooks.py": "a delivery outlives the request that caused it, as at Stripe",
}
ENTRY_POINTS: Mapping[str, str] = {
    "ironcart.cli.__main__": "python -m ironcart.cli",
    "ironcart.embedded.sandbox.__main__": "python -m ironcart.embedded.sandbox",
    "ironcart.embedded.sandbox.server": "lets tests kill the sandbox and start it again",
}
LOADED_BY_NAME = re.compile(r"ironcart\.(services\.\w+\.app|cli\.\w+)")
HAS_LONG_LINES: Mapping[str, str] = {
    "src/ironcart/services/orders/handlers/table.py": "a table is read by its columns",
}
READS_ENVIRONMENT = "toolkit/settings.py"
TALKS_TO_A_PERSON = ("cli/",)
