# `make demo` and `make test` need nothing but Python 3.11 or newer; both build .venv first.
PYTHON ?= python3
BIN := .venv/bin
SOURCES := pyproject.toml constraints.txt README.md $(shell find ssmseq kernels -type f -not -name '*.so' -not -path '*/__pycache__/*')

.PHONY: demo test lint bench docs clean

demo: .venv/installed
	$(BIN)/ssmseq demo

test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: .venv/installed
	$(BIN)/ssmseq benchmark run quick --jobs 2
	$(BIN)/ssmseq benchmark report quick

docs: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt ".[docs]"
	OMP_NUM_THREADS=1 $(BIN)/pytest -q tests/test_documentation.py
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx --fail-on-warning --keep-going docs docs/_build/html

.venv/installed: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt ".[dev]"
	touch $@

clean:
	rm -rf .venv build demo-output docs/_build docs/auto_examples docs/data_sets docs/generated
