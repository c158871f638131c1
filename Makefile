# Each target does its own set-up: a virtual environment in .venv, installed with pinned versions.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: few_step smoke test lint ui clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt "torch==2.13.0"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $(STAMP)

few_step: $(STAMP)
	$(BIN)/python -m harness.run study=few_step

smoke: $(STAMP)
	$(BIN)/python -m harness.run study=smoke

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(STAMP)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

ui: $(STAMP)
	$(BIN)/python -m harness.tracking.ui runs

clean:
	rm -rf $(VENV)
