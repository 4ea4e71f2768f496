"""The outside checker: every promise computed from the stream, the databases, the gateway's ledger,
the mailbox and the load generator's own log. It imports nothing of ironcart, so that a mistake in
the services cannot hide itself here.
"""
