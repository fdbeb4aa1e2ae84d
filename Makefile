# Every habit of this project is a target; `make` alone lists them.

SHELL  := /bin/bash
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
SEEDS  ?= 5000
# Asked once: a run that ends after midnight stays in one directory.
TODAY  := $(shell date -u +%F)
RESULTS ?= bench/results/$(TODAY)
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help run test check quick fmt lint types arch own-coverage servers explore sim integrity bench measure lock clean

help: ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

run: $(VENV)/.runtime ## install what is needed, start the gateway with small upstreams behind it
	@$(BIN)/streamgw demo

test: servers check ## everything, with the real servers installed first: what CI runs

check: lint types arch own-coverage ## everything, with the servers that are there
	$(BIN)/pytest --cov=streamgw --cov-report= --cov-fail-under=95

quick: $(VENV)/.dev ## the inner loop: no processes, no servers
	$(BIN)/pytest -q -m "not slow and not servers" tests/core tests/config tests/dataplane tests/control

fmt: $(VENV)/.dev ## format, and fix what can be fixed
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

lint: $(VENV)/.dev ## format, rules, spelling, one test file per module
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/codespell
	$(BIN)/python -m tools.check_test_mirror

types: $(VENV)/.dev ## mypy --strict
	$(BIN)/mypy

arch: $(VENV)/.dev ## the layers import only what they may
	$(BIN)/lint-imports

own-coverage: $(VENV)/.dev ## core and config: every branch, from the module's own test file
	$(BIN)/python -m tools.check_own_coverage

servers: ## Debian packages that the tests need
	@tools/install_servers.sh

explore: $(VENV)/.dev ## the property tests with 2,000 new examples each; a failure prints how to replay it
	$(BIN)/pytest -q -m hypothesis --hypothesis-profile explore --timeout 1200

sim: $(VENV)/.dev ## random histories of UDP sessions: SEEDS=5000 of them, or the one of STREAMGW_SEED
	STREAMGW_SEEDS=$(SEEDS) $(BIN)/pytest -q tests/core/sim

integrity: $(VENV)/.dev ## 24,000 sessions of all kinds through the kernel's relay, compared byte for byte
	STREAMGW_SOCKMAP_SESSIONS=24000 $(BIN)/pytest -q tests/conformance/test_pump_integrity.py -k kernel

bench: $(VENV)/.dev servers ## speed beside nginx and HAProxy with one worker and with two, memory, growth, reloads, stalls, saved in bench/results/DATE: half an hour
	$(BIN)/python -m bench.router
	$(BIN)/python -m bench --json $(RESULTS)/one-worker.json
	$(BIN)/python -m bench --workers 2 --only ping-256,connect-32,bulk-down-8,bulk-up-8 --json $(RESULTS)/two-workers.json
	$(BIN)/python -m bench.memory --json $(RESULTS)/memory.json
	$(BIN)/python -m bench.pace --json $(RESULTS)/pace.json
	$(BIN)/python -m bench.growth --json $(RESULTS)/growth.json
	$(BIN)/python -m bench.reload --json $(RESULTS)/reload.json
	$(BIN)/python -m bench.stall
	@echo "$(BIN)/python -m bench.charts $(RESULTS) draws the pictures of docs/performance.md anew, from these."

measure: $(VENV)/.dev ## the style of the tree in one line of figures
	@$(BIN)/python -m tools.measure streamgw tests

lock: ## write constraints.txt anew, with the newest versions that pyproject.toml allows
	tools/lock.sh

clean: ## remove what was made, the virtual environment too
	rm -rf $(VENV) build dist .coverage .coverage.* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.runtime: pyproject.toml constraints.txt
	@PYTHON=$(PYTHON) tools/make_venv.sh $(VENV)
	$(PIP) -e .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	@PYTHON=$(PYTHON) tools/make_venv.sh $(VENV)
	$(PIP) -e '.[dev]'
	@touch $(VENV)/.runtime $@
