# make demo    install into .venv, then the whole path on data it makes itself (out/demo)
# make test    install, then lint, types, import contracts and tests
# make check   all of that but the tests, in seconds
.PHONY: venv demo test test-ray test-rest test-slow check

PYTHON ?= python3
BIN := .venv/bin

venv: .venv/installed

# torch first: alone it resolves to the build that the machine's pip is set up for, and the rest then finds it there.
.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	touch $@

# Of an earlier demo goes what that wrote; where anything else lies there, braintum refuses the folder.
demo: venv
	rm -rf out/demo/phantom out/demo/study
	rmdir out/demo 2>/dev/null || true
	$(BIN)/braintum demo --out out/demo

check: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Tests with a Ray wait much: the others run beside them. One core each, so that none slows the other by spinning.
test: check
	$(MAKE) --no-print-directory -j2 $(if $(filter output-sync,$(.FEATURES)),--output-sync=target) test-ray test-rest

# A Ray that dies takes pytest with it, without a word: only its logs say why.
test-ray: venv
	OMP_NUM_THREADS=1 $(BIN)/pytest -m 'ray and not slow' --durations=10 || \
	  { tail -n 20 /tmp/ray*/session_latest/logs/raylet.out /tmp/ray*/session_latest/logs/gcs_server.out; exit 1; }

test-rest: venv
	OMP_NUM_THREADS=1 $(BIN)/pytest -m 'not ray and not slow' --durations=5

test-slow: check
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow --durations=20
