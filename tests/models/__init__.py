"""Explicit-state models: every interleaving of a protocol, within a budget of faults.

Each model drives the product's own tables and pure functions where there are any, so that it checks
the code and not a copy. `PYTHONPATH=tests python -m models` runs them within larger budgets than
the tests do.
"""
