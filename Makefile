VENV ?= .venv
BIN := $(VENV)/bin
SOURCES := $(wildcard bootstrapnas eftnas lonas plm_nas mos tests benchmarks)

.PHONY: help check test format clean install

help:
	@echo "make check    lint, formatting, types, architecture"
	@echo "make test     the tests; PYTEST_ARGS='-k search' passes arguments on"
	@echo "make format   mend formatting and what the linter can mend"
	@echo "make clean    delete caches and builds; the environment $(VENV) and runs/ stay"

# Sets up what is missing; instant when nothing is.
install:
	@bash install.sh --dev --venv $(VENV)

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy bootstrapnas
	$(BIN)/lint-imports

test: install
	$(BIN)/python -m pytest $(PYTEST_ARGS)

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
