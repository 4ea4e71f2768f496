"""Payments against a gateway: two replicas, and everything between them that may go wrong."""
