# Everything installs itself into .venv from a hash-pinned lock; everything that a run writes lies under .attune/.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: run test test-slow check bench examples demo lock clean help

run: $(INSTALLED)  ## start Attune on http://127.0.0.1:8000
	@exec $(BIN)/attune up

demo: $(INSTALLED)  ## a fresh Attune, 200 votes by simulated people, and what they changed
	@$(BIN)/python -m attune.simulate.demo

test: $(INSTALLED) chromium  ## every test, on real parts
	$(BIN)/python -m pytest -q

test-slow: $(INSTALLED)  ## the longest of the tests alone
	$(BIN)/python -m pytest -q -m slow --timeout 3600

check: $(INSTALLED)  ## format, lint, types, and the rules of the house
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/unit/test_house.py

bench: $(INSTALLED)  ## what a request costs beside bare vLLM: the last table of the README
	$(BIN)/python -m benchmarks.loop

examples: $(INSTALLED)  ## three worked examples, written to docs/examples.md (about half an hour)
	$(BIN)/python -m benchmarks.examples

.PHONY: chromium
chromium:
	@command -v chromium >/dev/null || { echo "installing chromium, to test the page"; \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null; \
	  else false; fi; } || echo "chromium could not be installed: install the package yourself, or the page is not tested"

$(BIN)/uv: locks/uv.txt
	@echo "making $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Attune needs Python 3.11 or newer: make run PYTHON=python3.11"; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { echo "the venv module is missing: install the package python3-venv"; exit 2; }
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r locks/uv.txt
	@touch $@

$(INSTALLED): $(BIN)/uv locks/cpu.txt pyproject.toml
	@echo "installing about 200 packages (6 GB; a minute or so where the network is near)"
	@UV_PYTHON=$(BIN)/python $(BIN)/uv pip sync --quiet --require-hashes locks/cpu.txt
	@UV_PYTHON=$(BIN)/python $(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

lock: $(BIN)/uv  ## resolve the dependencies anew
	$(BIN)/uv pip compile pyproject.toml --extra cpu --extra dev --extra setup --override locks/overrides.txt --generate-hashes --no-emit-index-url \
	  --no-emit-find-links --universal --python-version 3.11 --no-header --no-annotate --quiet --output-file locks/cpu.txt

clean:  ## remove what runs and tests wrote, and the installed packages
	rm -rf .attune $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' Makefile | expand -t 12
