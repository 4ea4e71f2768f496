"""Notifications tell customers how their orders ended.

Owns      notifications (one row an order, template and channel)
Consumes  OrderConfirmed, OrderRejected, OrderCancelled
Emits     NotificationSent, NotificationFailed
Promises  one mail for each end of an order, however long the mail server is away; a crash between
          the server's 250 and our commit may repeat it, under the same Message-ID
Keeps     no address in the clear: contacts stay ciphertext, and a recipient is known by a hash
          keyed from the master key, which tells nothing to somebody with a list of addresses
"""
