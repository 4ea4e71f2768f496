"""Orders takes orders, and says what becomes of them.

Owns      orders and idempotency_keys
Consumes  its own OrderCreated (to adopt what came from elsewhere), StockReserved, StockRejected,
          PaymentSucceeded, PaymentFailed, PaymentVoided, PaymentRefunded, RefundIssued
Emits     OrderCreated, OrderCancellationRequested, OrderConfirmed, OrderRejected, OrderCancelled
Promises  an order answered with 202 is never lost; one order for one idempotency key; each order
          ends in exactly one of confirmed, rejected, cancelled
"""
