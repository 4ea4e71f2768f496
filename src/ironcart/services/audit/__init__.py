"""Audit keeps every message of every stream, and chains them so that tampering shows.

Owns      entries (one row a message, as it was) and links (one hash a message, unbroken from 1)
Consumes  everything: all subjects of ORDERS, INVENTORY, PAYMENTS, NOTIFICATIONS and DEADLETTERS
Emits     nothing
Promises  nothing is parked, changed or removed; the chain stops at a missing message and says so
"""
