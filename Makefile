# Needs Python 3.11 to 3.13 and make. VENV=... puts the virtual environment elsewhere, PYTHON=... picks the interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow lint settings clean

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: $(VENV)/.installed ## Install cmseg into the virtual environment

demo: $(VENV)/.installed ## Run the whole product on a simulated acquisition
	$(BIN)/cmseg demo

test: $(VENV)/.installed-dev ## Unit and acceptance tests, in two processes
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(VENV)/.installed-dev ## The tests that take minutes
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.installed-dev ## Style, types and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

settings: $(VENV)/.installed ## Write docs/settings.md anew from the models
	$(BIN)/python docs/make_settings.py

clean: ## Remove the virtual environment and every cache
	rm -rf $(VENV) .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp stands for a finished install, so that an interrupted one is taken up again.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $(VENV)/.installed $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
	    || { echo "cmseg needs Python 3.11, 3.12 or 3.13; name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
