"""Audit's decisions: the chain of everything, and what is signed of it."""
