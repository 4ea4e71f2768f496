"""Notifications over HTTP: what became of each, and the endpoints that webhooks go to."""
