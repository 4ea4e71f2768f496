"""What orders decides: reading an order, accepting it, moving it on, cancelling it."""
