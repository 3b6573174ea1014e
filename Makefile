VENV ?= .venv
PARITY_VENV ?= .venv-parity
BIN := $(VENV)/bin
SOURCES := $(wildcard bootstrapnas eftnas lonas plm_nas mos tests benchmarks)

.PHONY: help check test parity format clean install

help:
	@echo "make check    lint, formatting, types, architecture"
	@echo "make test     the tests; PYTEST_ARGS='-k search' passes arguments on"
	@echo "make parity   compare with NNCF 2.19 itself, in an environment of its own ($(PARITY_VENV))"
	@echo "make format   mend formatting and what the linter can mend"
	@echo "make clean    delete caches and builds; the environment $(VENV) and runs/ stay"

# Sets up what is missing; instant when nothing is.
install:
	@bash install.sh --dev --venv $(VENV)

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy bootstrapnas eftnas lonas
	$(BIN)/lint-imports

# A process a core, each with whole files, which share what is slow to make.
test: install
	$(BIN)/python -m pytest -n auto --dist loadfile $(PYTEST_ARGS)

# What NNCF computes goes to build/parity; tests/golden/nncf.json is a copy of its nncf.json.
parity: install $(PARITY_VENV)/.installed
	$(PARITY_VENV)/bin/python tests/parity/reference.py build/parity
	NNCF_REFERENCE=build/parity $(BIN)/python -m pytest tests/test_parity.py $(PYTEST_ARGS)

$(PARITY_VENV)/.installed: requirements/parity.txt
	$(BIN)/python -m venv $(PARITY_VENV)
	$(PARITY_VENV)/bin/pip install -q --no-deps $(if $(TORCH_INDEX_URL),--index-url $(TORCH_INDEX_URL)) $(shell grep '^torch==' requirements/parity.txt)
	$(PARITY_VENV)/bin/pip install -q -r requirements/parity.txt
	touch $@

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build dist *.egg-info .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +
