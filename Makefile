# make run: text from the model inside the package. make test: everything CI checks.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test lint format clean

run: .venv/ossia.installed
	$(BIN)/ossia generate --max-tokens 200 "def read_lines(path):"

test: lint
	$(BIN)/pytest -n 2

lint: .venv/test.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: .venv/test.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torch first, by its pinned version: any other order would fetch a second, larger build.
.venv/ossia.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ossia needs Python 3.11 or newer; try make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --requirement constraints.txt
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/test.installed: .venv/ossia.installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache
