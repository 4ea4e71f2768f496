"""Notifications' decisions: what to tell whom, and what came of it."""
