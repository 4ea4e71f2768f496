"""Deterministic simulation of the toolkit's loops: real code on a fake broker, database and clock.

`PYTHONPATH=tests .venv/bin/python -m simulation --seeds 1000`; `--seed N --trace` replays one.
"""
