.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help setup demo test simulate fuzz check security sbom chaos defects bench gate lock clean

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

# Tools that do not fit beside our own pins.
CHECKS := .venv-checks/bin

.venv-checks/.ready: requirements-checks.lock
	$(PYTHON) -m venv .venv-checks
	$(CHECKS)/pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

demo: .venv/.ready  ## everything on this machine, with load running, until Ctrl-C
	$(BIN)/ironcart up --data .ironcart --load 20

test: setup  ## all tests, in two processes; starts what it needs
	@# Hundreds of processes start: what is compiled is kept, whatever the environment says.
	PYTHONDONTWRITEBYTECODE= $(BIN)/pytest -n 2

simulate: setup  ## 1,000 seeded schedules of the toolkit's loops, with crashes and outages
	PYTHONPATH=tests $(BIN)/python -m simulation --seeds 1000

fuzz: setup  ## 20,000 examples for each decoder of what comes from outside; tens of minutes
	$(BIN)/pytest -n 2 --timeout 3600 --hypothesis-profile fuzz tests/unit/test_fuzz_*.py \
		tests/unit/test_toolkit_wire.py tests/unit/test_toolkit_envelope.py

check: setup  ## lint, format, types, import rules, tidiness
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/pytest tests/test_tidy.py -q

SEMGREP := SEMGREP_SEND_METRICS=off $(CHECKS)/semgrep scan --disable-version-check --quiet

security: .venv-checks/.ready sbom  ## our own semgrep rules, secrets in the repository, and `sbom`
	$(SEMGREP) --test checks/semgrep
	$(SEMGREP) --error --config checks/semgrep src
	$(CHECKS)/python -m checks.secrets

sbom: .venv-checks/.ready  ## what the image is made of, with licences: out/sbom.json (CycloneDX)
	$(CHECKS)/python -m checks.sbom out/sbom.json

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
	uv pip compile requirements-checks.in --universal --python-version 3.11 --no-strip-extras \
		--generate-hashes --no-emit-index-url --no-annotate --no-header --quiet \
		-o requirements-checks.lock

clean:  ## remove the environment and what the demo kept
	rm -rf .venv .venv-checks .ironcart
