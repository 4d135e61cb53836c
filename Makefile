# make demo | test | check | bench | clean. On a fresh Debian machine each installs what it needs and is missing.

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
PACKAGES := common manager hostagent spm tests

# The environment is brought up to date when what it was made from changes, and only then.
INPUTS := pyproject.toml constraints.txt constraints-libvirt.txt
STAMP := $(VENV)/.made-from-$(shell cat $(INPUTS) | sha256sum | cut -c 1-16)

# Compiled modules are kept even where the environment says otherwise: each process of pytest would compile all tests again
# (8 s of CPU instead of 4), and each of the hundreds of processes that tests start whatever it imports (0.2 s). `make clean`
# removes them.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-production model matrix chaos check lint bench clean venv tools

demo: tools venv
	$(BIN)/python -m tests.demo

# Three workers even on two cores, because guests mostly wait. Tests that share an expensive server share a group. The last
# line is pytest's own count.
test: tools lint
	$(BIN)/pytest -n 3 --dist loadgroup --durations=15

# The end-to-end tests once more, on RabbitMQ and PostgreSQL instead of Redis and SQLite.
test-production: tools venv
	LIVESNAP_E2E=production $(BIN)/pytest -n 3 --dist loadgroup --durations=15 tests/e2e

# The protocol's model with larger budgets than the suite's (tests/model/MODEL.md).
model: venv
	$(BIN)/python -m tests.model --deep

# Every process killed at every crash point of every step (tests/CHAOS.md). make matrix ONLY=repaired
ONLY ?=
matrix: tools venv
	$(BIN)/python -m tests.matrix --only '$(ONLY)' --report matrix.jsonl
	$(BIN)/pytest -m matrix -k '$(ONLY)' -n 2 --dist loadgroup

# Random faults on a running fleet (tests/CHAOS.md): make chaos ROUNDS=300 SEED=7; PRODUCTION=1 for RabbitMQ, PostgreSQL
ROUNDS ?= 20
SEED ?= 1
chaos: tools venv
	$(BIN)/python -m tests.chaos --rounds $(ROUNDS) --seed $(SEED) --report chaos.jsonl $(if $(PRODUCTION),--production)

# Seconds, not minutes: nothing is started, and what takes long by itself is left to `make test`.
check: lint
	$(BIN)/pytest -q -n auto --dist loadgroup -p no:schemathesis -m 'not slow and not matrix' \
		tests/unit tests/test_architecture.py

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# Against the floor, alternating in the same run (tests/BENCHMARKS.md): make bench ONLY=latency; QUICK=1, TIMES=3, SAVE=1
TIMES ?= 1
bench: tools venv
	$(BIN)/python -m tests.bench --only '$(ONLY)' --times $(TIMES) $(if $(QUICK),--quick) $(if $(SAVE),--save)

venv: $(STAMP)

$(STAMP):
	deploy/install-debian.sh --build
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/pip install -q -c constraints.txt -c constraints-libvirt.txt -e '.[all,dev]'
	rm -f $(VENV)/.made-from-*
	touch $@

tools:
	deploy/install-debian.sh

# A VENV elsewhere is somebody's own and stays.
clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find $(PACKAGES) -name __pycache__ -prune -exec rm -rf {} +
