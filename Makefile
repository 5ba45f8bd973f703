# make run: the model inside the package reasons, calls a tool and answers. make test: everything CI checks.
PYTHON ?= python3
BIN := .venv/bin
EMULATE := -C cmake.define.OSSIA_EMULATE_AMX=ON

.PHONY: run test lint format sanitize clean

run: .venv/ossia.installed
	echo "What is 48213 * 977?" | $(BIN)/ossia chat --reasoning-effort high --show-reasoning

test: lint
	OSSIA_TEST_BUILD=1 $(BIN)/pytest -q -n 2 --durations=20

lint: .venv/test.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: .venv/test.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The native kernels under AddressSanitizer and UBSan, then their driver under ThreadSanitizer. -S leaves the editable install
# out of sight; what runs under qemu stays out, where a sanitizer finds no room for its shadow memory.
sanitize: .venv/test.installed
	$(BIN)/pip install --quiet --no-deps --upgrade --target build/sanitize $(EMULATE) -C cmake.define.OSSIA_SANITIZE=address,undefined .
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1 \
	PYTHONPATH="build/sanitize:$$(echo .venv/lib/python3*/site-packages):." \
	$(BIN)/python -S -P -m pytest -o pythonpath= -k "not neon and not older_processors" tests/ops/cpu
	cmake -S native -B build/thread -DOSSIA_DRIVER=ON -DOSSIA_EMULATE_AMX=ON -DOSSIA_SANITIZE=thread
	cmake --build build/thread --parallel 2
	TSAN_OPTIONS=halt_on_error=1 OSSIA_DRIVER=build/thread/driver $(BIN)/pytest -k "not neon and not older_processors" tests/ops/cpu

# torch first, by its pinned version: any other order would fetch a second, larger build.
.venv/ossia.installed: pyproject.toml constraints.txt $(wildcard native/*.txt native/src/* native/src/*/*)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "ossia needs Python 3.11 or newer; try make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --requirement constraints.txt
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

# The native module anew, with an emulated AMX that only tests use.
.venv/test.installed: .venv/ossia.installed $(wildcard native/tests/*)
	$(BIN)/pip install --quiet --constraint constraints.txt $(EMULATE) --editable '.[test]'
	touch $@

clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache
