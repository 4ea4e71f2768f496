"""Payments takes the money for orders, once, and gives it back when they are undone.

Owns      payments (one row an order), refunds, webhooks, reconciler
Consumes  StockReserved, OrderCancellationRequested
Emits     PaymentSucceeded, PaymentFailed, PaymentVoided, PaymentRefunded, RefundIssued
Promises  at most one capture an order, whatever happens to calls, keys and processes; an order is
          never told as failed or voided while money could still move
"""
