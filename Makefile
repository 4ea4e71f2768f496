.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help setup demo test simulate check chaos defects bench gate lock clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

setup: .venv/.ready .venv/.ready-dev  ## a virtual environment in .venv with the ironcart command and every extra

PIP_INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile

.venv/.ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(PIP_INSTALL) --require-hashes -r requirements.lock
	$(PIP_INSTALL) --no-build-isolation --no-deps -e .
	@touch $@

.venv/.ready-dev: .venv/.ready requirements-dev.lock
	$(PIP_INSTALL) --require-hashes -r requirements-dev.lock
	@touch $@

demo: .venv/.ready  ## everything on this machine, with load running, until Ctrl-C
	$(BIN)/ironcart up --data .ironcart --load 20

test: setup  ## all tests, in two processes; starts what it needs
	$(BIN)/pytest -n 2

simulate: setup  ## 1,000 seeded schedules of the toolkit's loops, with crashes and outages
	PYTHONPATH=tests $(BIN)/python -m simulation --seeds 1000

check: setup  ## lint, format, types, import rules, tidiness
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/pytest tests/test_tidy.py -q

chaos: setup  ## faults in real processes under load, then every promise checked; under ten minutes
	$(BIN)/python -m chaos --out out/chaos

defects: setup  ## one defence taken away at a time: the chaos harness has to notice
	$(BIN)/python -m chaos --defects --out out/chaos

bench: setup  ## everything in docs/performance.md, on a machine that does nothing else; some hours
	$(BIN)/python -m benchmarks --out out/bench

gate: setup  ## whether batching does what everything rests on: ratios within one run, three minutes
	$(BIN)/python -m benchmarks gate --out out/bench

LOCK := uv pip compile pyproject.toml --extra embedded --group build --universal --python-version 3.11 \
	--generate-hashes --no-emit-index-url --no-annotate --no-header --quiet

lock:  ## write the lock files anew (needs uv)
	$(LOCK) -o requirements.lock
	$(LOCK) --group dev -o requirements-dev.lock

clean:  ## remove the environment and what the demo kept
	rm -rf .venv .ironcart
