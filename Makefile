# The two commands to begin with: `make demo` and `make test`. `make help` lists the rest.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3.11
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/hvkf
# One set of installed packages per lock file, shared by all clones; .venv adds this clone to it.
LOCK_DIGEST := $(shell sha256sum requirements.lock | cut -c1-16)
PACKAGES := $(CACHE)/packages/py311-$(LOCK_DIGEST)
VENV := .venv
# Commands of packages that the docs use: copied so that they run by this environment's Python.
COMMANDS := accelerate prefect tensorboard torchrun
TEST_WORKERS ?= 2
PY := $(VENV)/bin/python

export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(PACKAGES)/.complete: requirements.lock
	@mkdir -p $(CACHE)/packages
	@flock $(CACHE)/packages/$(LOCK_DIGEST).lock bash -eu -c '\
	  [ -e $@ ] && exit 0; \
	  echo "Installing $$(wc -l < requirements.lock) packages into $(PACKAGES), once for this lock file (about 5 minutes)"; \
	  $(PYTHON) -m venv $(PACKAGES); \
	  $(PACKAGES)/bin/python -m pip install --disable-pip-version-check --progress-bar off -q --no-deps -r requirements.lock; \
	  $(PACKAGES)/bin/python -m pip check; \
	  touch $@'

$(VENV)/.complete: $(PACKAGES)/.complete pyproject.toml
	@rm -rf $(VENV)
	@$(PYTHON) -m venv --without-pip $(VENV)
	@echo "import site; site.addsitedir('$$(cd $(PACKAGES) && pwd)/lib/python3.11/site-packages')" \
	  > $(VENV)/lib/python3.11/site-packages/hvkf_packages.pth
	@$(PY) -m pip install --disable-pip-version-check -q --no-deps --no-build-isolation -e .
	@for name in $(COMMANDS); do \
	  sed "1s|.*|#!$$(pwd)/$(PY)|" $(PACKAGES)/bin/$$name > $(VENV)/bin/$$name; \
	  chmod +x $(VENV)/bin/$$name; \
	done
	@touch $@

.PHONY: env
env: $(VENV)/.complete ## the Python environment, from requirements.lock

.PHONY: lock
lock: ## resolve requirements.lock anew from pyproject.toml (needs uv)
	uv pip compile pyproject.toml --python-version 3.11 --extra model --extra demo --extra dev \
	  --no-annotate --no-header -o requirements.lock
	uv pip compile pyproject.toml --python-version 3.11 -c requirements.lock \
	  --no-annotate --no-header -o requirements-flow.lock

.PHONY: demo
demo: env ## the whole chain on moving shapes and real clips with a tiny trained model, in demo/
	@$(VENV)/bin/hvkf demo demo

.PHONY: serve
serve: env ## Prefect's UI with all flows on this machine, in serve/ (Ctrl-C ends it)
	@$(PY) -m flows.serve serve --port $(or $(PORT),4200)

.PHONY: check
check: env ## lint, format and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# Tests start processes of their own: one thread each, or two cores drown.
.PHONY: test
test: env ## the fast tests
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n $(TEST_WORKERS) -m "not slow and not gpu and not browser"

.PHONY: test-all
test-all: env ## the fast tests and the long drills
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n $(TEST_WORKERS) -m "not long and not gpu and not browser"

.PHONY: fuzz
fuzz: env ## hostile input for every parser, drawn anew each time (FUZZ=20 times as long as in make test)
	OMP_NUM_THREADS=1 HVKF_FUZZ=$(or $(FUZZ),20) HVKF_FUZZ_RANDOM=1 $(PY) -m pytest -q -n $(TEST_WORKERS) tests/fuzz

.PHONY: learn
learn: env ## the benchmark of learning, with all ablations (an hour on two cores)
	$(PY) -m pytest -q -m long tests/test_learning.py

.PHONY: bench
bench: env ## the data path against its limits (docs/performance.md; an hour, idle machine)
	OMP_NUM_THREADS=1 PYTHONPATH=. $(PY) benchmarks/data_path $(BENCH)

.PHONY: e2e
e2e: env ## the chain on the cluster of KUBECONFIG (docs/cluster.md says what it needs)
	$(PY) -m pytest -q -rs tests/e2e

.PHONY: clean
clean: ## remove the environment link and the demo and serve/ (not the shared packages)
	rm -rf $(VENV) demo serve

.PHONY: docs
docs: env ## write docs/configuration.md anew from the settings
	$(PY) docs/configuration.py
