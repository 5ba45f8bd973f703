# make run: the model inside the package reasons, calls tools and answers, in a chat of three turns. make test: everything CI checks.
PYTHON ?= python3
BIN := .venv/bin
EMULATE := -C cmake.define.OSSIA_EMULATE_AMX=ON

.PHONY: run test clients evaluations replicas docs pictures screenshots cast lint format sanitize wheel test-wheel test-lowest clean

run: .venv/ossia.installed
	printf '%s\n' "How many r in strawberry?" "What is 48213 * 977?" "What does os.path.exists do?" | \
	  $(BIN)/ossia chat --show-reasoning

test: lint
	OSSIA_TEST_BUILD=1 $(BIN)/pytest -q -n 2 --durations=20

# The server with real clients (docs/clients.md). Some cannot be installed beside others, so they have environments of their own;
# one that cannot be installed at all is skipped.
APART := gpt_oss instructor lm_eval schemathesis
CLIENT_TESTS := pytest -q -rs --confcutdir tests/clients
clients: .venv/test.installed .venv-clients/node/installed $(patsubst %,.venv-clients/%/installed,shared $(APART))
	failed=; .venv-clients/shared/bin/$(CLIENT_TESTS) tests/clients \
	  $(patsubst %,--ignore tests/clients/test_%.py,$(APART)) || failed=shared; \
	for name in $(APART); do \
	  .venv-clients/$$name/bin/$(CLIENT_TESTS) tests/clients/test_$$name.py || failed="$$failed $$name"; done; \
	test -z "$$failed" || { echo "failed: $$failed"; exit 1; }

# gpt-oss needs Python 3.12. That a program of that name is found is not enough: it may be a shim of pyenv's.
CLIENT_PYTHON = $(PYTHON)
CANDIDATES = $(PYTHON) python3.12 python3.13 python3.14 $(wildcard $(HOME)/.pyenv/versions/3.1[2-4].*/bin/python3)
.venv-clients/gpt_oss/installed: private CLIENT_PYTHON = $(or $(shell for python in $(CANDIDATES); do \
  $$python -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2> /dev/null && echo $$python && break; done),$(PYTHON))

.venv-clients/%/installed: tests/clients/requirements/%.txt
	$(CLIENT_PYTHON) -m venv --clear $(@D)
	$(@D)/bin/pip install --quiet --constraint $< pytest
	-$(@D)/bin/pip install --quiet --requirement $< # whose tests are skipped if it fails
	touch $@

.venv-clients/node/installed: tests/clients/package.json
	mkdir -p $(@D)
	-cp $< $(@D) && npm install --prefix $(@D) --no-audit --no-fund
	touch $@

# Models of ossia in lm-eval and inspect-ai, which bring much, in an environment over .venv (and over what is below that).
evaluations: .venv/test.installed .venv-clients/evaluations/installed
	.venv-clients/evaluations/bin/python -m pytest -q -rs tests/eval/test_harness.py tests/eval/test_inspect.py

.venv-clients/evaluations/installed: pyproject.toml
	$(PYTHON) -m venv --clear $(@D)
	printf 'import site; site.addsitedir("%s")\n' "$$(realpath .venv/lib/python3*/site-packages)" > \
	  "$$(echo $(@D)/lib/python3*/site-packages)/below.pth"
	$(@D)/bin/pip install --quiet --constraint constraints.txt lm-eval inspect-ai
	touch $@

# `ossia serve --replicas` with Ray, which brings much, in an environment over .venv. Its processes inherit the path.
replicas: .venv/test.installed .venv-clients/ray/installed
	PYTHONPATH="$$(echo $(CURDIR)/.venv-clients/ray/lib/python3*/site-packages)" $(BIN)/python -m pytest -q -rs tests/ray

.venv-clients/ray/installed: pyproject.toml
	$(PYTHON) -m venv --clear $(@D)
	realpath .venv/lib/python3*/site-packages > "$$(echo $(@D)/lib/python3*/site-packages)/below.pth"
	$(@D)/bin/pip install --quiet --constraint constraints.txt 'ray[serve]>=2.60'
	touch $@

# docs/ as a book with the reference, in build/docs. A broken link, or a page that the navigation leaves out, is an error.
# Pages open from disk; their search needs HTTP: python -m http.server --directory build/docs
docs: .venv/docs.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

# The pictures in docs/ that are drawn from the code. Tests compare them with the committed ones.
pictures: .venv/ossia.installed
	$(BIN)/ossia compare --article docs/compare --ladder docs/ablation --measured bench/results/2026-11-28
	$(BIN)/python -m book.pictures docs/ideas
	$(BIN)/python -m book.cast draw docs/cast.cast docs/cast.svg

# docs/xray.png and xray-dark.png anew, by Chromium.
screenshots: .venv/ossia.installed
	$(BIN)/python -m book.screenshots docs

# The terminal cast of the README anew: a shell in which the commands of book/cast.py are typed, in about half a minute.
cast: .venv/ossia.installed
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m book.cast record docs/cast.cast
	$(BIN)/python -m book.cast draw docs/cast.cast docs/cast.svg

# Not as '.[docs]', which would build the native module again, and without what `make test` needs in it.
.venv/docs.installed: .venv/ossia.installed
	$(BIN)/python -c 'import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	  print("\n".join(project["optional-dependencies"]["docs"]))' > .venv/docs.txt
	$(BIN)/pip install --quiet --constraint constraints.txt --requirement .venv/docs.txt
	touch $@

NATIVE := $(wildcard native/src/*.?pp native/src/*/*.?pp native/src/*/*.inl native/tests/*.?pp)
lint: .venv/test.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(NATIVE)
	$(BIN)/pyright

format: .venv/test.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(NATIVE)

# The native kernels under AddressSanitizer and UBSan, then their driver under ThreadSanitizer. -S leaves the editable install
# out of sight; what runs under qemu or with little memory stays out, where a sanitizer finds no room for its shadow memory.
UNSANITIZED := not neon and not older_processors and not memory_that_there_is_not
sanitize: .venv/test.installed
	$(BIN)/pip install --quiet --no-deps --upgrade --target build/sanitize $(EMULATE) -C cmake.define.OSSIA_SANITIZE=address,undefined .
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=halt_on_error=1 \
	PYTHONPATH="build/sanitize:$$(echo .venv/lib/python3*/site-packages):." \
	$(BIN)/python -S -P -m pytest -o pythonpath= -k "$(UNSANITIZED)" tests/ops/cpu
	cmake -S native -B build/thread -DOSSIA_DRIVER=ON -DOSSIA_EMULATE_AMX=ON -DOSSIA_SANITIZE=thread
	cmake --build build/thread --parallel 2
	TSAN_OPTIONS=halt_on_error=1 OSSIA_DRIVER=build/thread/driver $(BIN)/pytest -k "$(UNSANITIZED)" tests/ops/cpu

# A wheel with the native kernels.
wheel: .venv/ossia.installed
	rm -rf dist
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .

# The wheel in a clean environment, and in its place an installation without a compiler, which leaves the native kernels out.
test-wheel: wheel
	$(PYTHON) -m venv --clear build/wheel
	build/wheel/bin/pip install --quiet --requirement constraints.txt
	build/wheel/bin/pip install --quiet --constraint constraints.txt dist/*.whl
	.ci/ask build/wheel 0
	CC=/nonexistent CXX=/nonexistent build/wheel/bin/pip install --quiet --no-deps --force-reinstall .
	.ci/ask build/wheel 1

# A core set of tests on the lowest versions that pyproject.toml promises. Torch stays the pinned one: of 2.9, PyPI has for Linux
# only the build that brings several GB of CUDA libraries. Where that may be: make test-lowest LOWEST_TORCH=torch==2.9.0
LOWEST_TORCH ?= --requirement constraints.txt
LOWEST_TESTS := $(addprefix tests/,api checkpoint cli engine families model offload ops system text tools)
BESIDE_TRANSFORMERS := checkpoint/test_transformers.py checkpoint/test_variations.py text/test_template_files.py \
  text/test_templates_of_others.py text/test_vocabulary.py
test-lowest: wheel
	$(PYTHON) -m venv --clear build/lowest
	$(PYTHON) -c 'import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	  print(*(d.replace(">=", "==") for d in project["dependencies"] if not d.startswith("torch")), sep="\n")' > build/lowest.txt
	cat build/lowest.txt
	build/lowest/bin/pip install --quiet $(LOWEST_TORCH)
	build/lowest/bin/pip install --quiet --requirement build/lowest.txt dist/*.whl pytest pytest-xdist hypothesis openai-harmony
	echo "$(CURDIR)" > "$$(echo build/lowest/lib/python3*/site-packages)/checkout.pth"  # after site-packages: for tests/ alone
	PYTHONSAFEPATH=1 build/lowest/bin/pytest -q -n 2 -o pythonpath= $(LOWEST_TESTS) \
	  $(addprefix --ignore tests/,$(BESIDE_TRANSFORMERS)) --ignore tests/ops/cpu

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
	rm -rf .venv .venv-clients build dist .pytest_cache .ruff_cache
