# Everything a person needs, from a fresh clone on Debian or Ubuntu with Python 3.11 to 3.13 and make.
# Not here: anything that `analytics-pipeline --help` does once the environment is there.

VENV := .venv
BIN := $(VENV)/bin
STATE := .state
# The lock names everything, so that nothing is resolved (pip would ask for hashes of extras that it names).
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --root-user-action=ignore
INSTALLED := $(VENV)/.installed
PYTHON ?= $(shell for name in python3 python3.13 python3.12 python3.11; do \
	$$name -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	&& { echo $$name; break; }; done)

# The import-direction test alone, for lint.
IMPORT_TEST := analytics_pipeline_tests/unit/test_imports.py

.DEFAULT_GOAL := help
.PHONY: help venv demo test smoke bench bench-long lint clean

help:
	@echo "make demo    start everything, stream real data, show where to look; Ctrl-C stops it"
	@echo "make test    the whole test suite on real servers, under 10 minutes on 2 cores"
	@echo "make smoke   20,000 messages through the whole stack; one line of JSON on stdout"
	@echo "make bench   the benchmark; tables and JSON under benchmarks/results/"
	@echo "make bench-long   the benchmarks that take too long for that"
	@echo "make lint    ruff, mypy, the direction of imports"
	@echo "make clean   stop what the tests of .ci/ started, remove $(STATE)/ and caches"

venv: $(INSTALLED)

$(INSTALLED): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11, 3.12 or 3.13 found;" \
		"install one (apt install python3), or name it: make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "error: $(PYTHON) cannot make virtual" \
		"environments; apt install python3-venv" >&2; exit 1; }
	@echo "making $(VENV) with $$($(PYTHON) --version) and the pinned dependencies (a minute or two)" >&2
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@$(PIP) --no-deps --require-hashes -r requirements.lock
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

demo: venv
	@$(BIN)/analytics-pipeline up --state-dir $(STATE)

test: venv
	@$(BIN)/python -m pytest -n 3 --dist loadfile

smoke: venv
	@$(BIN)/analytics-pipeline smoke --state-dir $(STATE)/smoke

bench: venv
	@$(BIN)/python -m benchmarks

bench-long: venv
	@$(BIN)/python -m benchmarks --long

lint: venv
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest $(IMPORT_TEST)

clean:
	@for lock in $(STATE)/lock $(STATE)/smoke/lock; do \
		test ! -e $$lock || flock -n $$lock true \
		|| { echo "error: process $$(cat $$lock) still uses $(STATE)/: stop it first" >&2; exit 1; }; done
	@test ! -d $(STATE)/ci/kafka || .ci/kafka.sh clean
	@test ! -d $(STATE)/ci/timescaledb || .ci/timescaledb.sh clean
	@rm -rf $(STATE) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
