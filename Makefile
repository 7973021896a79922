# Two commands matter: `make demo` trains a small model, `make test` checks the code and runs the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# Test files differ in length by minutes: a worker that has none left takes over tests of the other.
PYTEST := $(BIN)/pytest -n 2 --dist worksteal

# What of JAX is installed for: `make demo ACCELERATOR=cuda13`. Empty is the CPU. `gnp doctor` advises.
ACCELERATORS := cuda12 cuda13 tpu
ACCELERATOR ?=
ifneq ($(words $(ACCELERATOR)),$(words $(filter $(ACCELERATORS),$(firstword $(ACCELERATOR)))))
$(error ACCELERATOR=$(ACCELERATOR) is not one of $(ACCELERATORS))
endif

.PHONY: demo test test-all lint format golden clean

demo: $(VENV)/installed$(addprefix -,$(ACCELERATOR))
	$(BIN)/gnp train

# The gate: format, lint, types and all but the slow tests, on both cores.
test: lint
	$(PYTEST) -m "not slow"

test-all: lint
	$(PYTEST)

lint: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# What a change of the code's shape must not change: `make golden BASE=main` runs this checkout and that revision.
BASE ?= main
golden: $(VENV)/installed-dev
	$(BIN)/python -m tests.golden compare $(BASE)

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --editable .
	touch $@

# With an extra: .venv/installed-dev, .venv/installed-cuda13 and so on.
EXTRAS := $(addprefix $(VENV)/installed-,dev $(ACCELERATORS))
$(EXTRAS): $(VENV)/installed-%: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --editable ".[$*]"
	touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache
