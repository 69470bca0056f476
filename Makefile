# make demo: the whole road on real images.  make test: all tests.  make check: lint and types.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
AUDIT := .venv-audit
LOCK := uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate --constraint constraints.txt

.PHONY: demo test check format lock audit clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/'

# Everything comes with its hash but torch, which may be any build of its version, and what only torch needs.
$(STAMP): pyproject.toml constraints.txt requirements/dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "sovit needs Python 3.11 or newer: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	@touch $@

demo: $(STAMP) ## train, export, serve and measure a small SoViT on real scans, into runs/demo
	@$(BIN)/sovit demo --out runs/demo

test: $(STAMP) ## run the tests
	@$(BIN)/python -m pytest

check: $(STAMP) ## run the linter and the type checker
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(STAMP) ## format the code
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

lock: ## write the hashes of what constraints.txt pins
	@$(BIN)/$(LOCK) --extra serving --extra tracing --extra cpu --output-file requirements/service.txt pyproject.toml
	@$(BIN)/$(LOCK) --extra serving --extra tracing --extra gpu --output-file requirements/gpu.txt pyproject.toml
	@$(BIN)/$(LOCK) --extra audit --output-file requirements/audit.txt pyproject.toml
	@$(BIN)/$(LOCK) --extra dev --override requirements/without-torch.txt --no-emit-package torch --output-file requirements/dev.txt pyproject.toml

audit: ## look up every pinned package in the advisory database; what cannot be looked up fails too
	@test -d $(AUDIT) || $(PYTHON) -m venv $(AUDIT)
	@$(AUDIT)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements/audit.txt
	@$(AUDIT)/bin/pip-audit --strict --disable-pip --require-hashes $(foreach file,service gpu dev audit,--requirement requirements/$(file).txt)
	@grep '^torch==' constraints.txt > $(AUDIT)/torch.txt
	@$(AUDIT)/bin/pip-audit --strict --disable-pip --no-deps --requirement $(AUDIT)/torch.txt

clean: ## remove the virtual environments and everything the demo made
	rm -rf $(VENV) $(AUDIT) runs
