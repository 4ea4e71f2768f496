"""Audit keeps every message of every stream, and chains them so that tampering shows.

Owns      entries (one row a message, as it was), links (one hash a message, unbroken from 1) and
          checkpoints (what was signed of where the chains stand; copies of what is exported)
Consumes  everything: all subjects of ORDERS, INVENTORY, PAYMENTS, NOTIFICATIONS and DEADLETTERS
Emits     nothing
Promises  nothing is parked, changed or removed; the chain stops at a missing message and says so;
          with a key, what is chained is soon signed, once, and exported whole
"""
