"""Inventory sets stock aside for orders.

Owns      stock (one row a SKU) and reservations (one row an order)
Consumes  OrderCreated, OrderConfirmed, OrderRejected, OrderCancelled
Emits     StockReserved, StockRejected, StockCommitted, StockReleased, StockAdjusted
Promises  all lines of an order or none; never more units promised than are on hand
"""
