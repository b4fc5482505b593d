# QMTL. Each target sets up what it needs on a machine with Python 3.11, make and a package index:
#   make demo | test | test-twofold | lint | plans | bench [ONLY=suite] | chaos [ONLY=suite RUNS=… SEED=1]
#        fuzz [EXAMPLES=250 SEED=1] | soak [SECONDS=1800 SEED=1]
SHELL := /bin/bash
PYTHON ?= python3
UV := $(shell command -v uv 2>/dev/null || echo .uv/bin/uv)
RUN := $(UV) run --no-sync
# Tests start hundreds of processes. Without cached bytecode, each needs another second to compile its modules.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-twofold lint plans bench chaos soak fuzz picture setup server record-histories

demo: setup server
	@$(RUN) qmtl demo

test: setup server
	@$(RUN) pytest -n auto --dist worksteal $(ARGS)

# The e2e tests on two Gateways, workers, relays and order routers over one PostgreSQL database.
test-twofold: setup server
	@QMTL_TEST_TWOFOLD=1 $(RUN) pytest tests/e2e -n auto --dist worksteal $(ARGS)

lint: setup
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .
	@$(RUN) mypy
	@$(RUN) lint-imports
	@$(RUN) vulture

# Read the plans of all queries in tables that do have a million rows (the tests let planners think so).
plans: setup
	@QMTL_PLAN_ROWS=1000000 $(RUN) pytest tests/integration/test_query_plans.py --timeout=3600 $(ARGS)

bench: setup server
	@$(RUN) python -m benchmarks $(ONLY)

# stream: kill processes while events flow (100 runs). orders: kill them while orders and applies run (200 applies).
# twofold: the same with two Gateways, workers, order routers and relays over one PostgreSQL database (400 applies).
# leaks: remove each check of the fence in turn, then refuse too much, count on or stand still, and verify that the
# checker finds it.
# poison: mix hostile inputs with normal submissions while processes are killed (200 of each).
# routing: kill the order router while orders flow to an unkind exchange (three runs of 60 s; RUNS: seconds).
# targets: the same while a strategy trades by targets; at rest it holds what it says.
# pairs: kill each process of the embedded stack and each pair, halt the world meanwhile, start them again (15 cases).
# rebalancing: kill each process at each step of rebalancings, while applies want their worlds (200 runs); then
# verify that the checker finds a lost fill, a doubled one, a retry without its client id and a skipped lock.
chaos: setup server
	@for suite in $(or $(ONLY),stream orders twofold leaks poison routing targets spot pairs rebalancing); do $(RUN) python -m tests.chaos $$suite $(RUNS) $(if $(RUNS),$(SEED)) || exit 1; done

# Let a year pass in one world in half an hour, thinned out: submissions, judgments, orders, applies, retention.
# Sizes and latencies of its last tenth are compared with the first, as a table and a plot.
soak: setup server
	@$(RUN) python -m tests.chaos soak $(or $(SECONDS),1800) $(or $(SEED),1)

# Send requests generated from the Gateway's OpenAPI document, about 70 for each of EXAMPLES.
fuzz: setup server
	@$(RUN) python -m tests.chaos.fuzz $(or $(EXAMPLES),250) $(or $(SEED),1)

# Take the README's pictures; needs Debian's packages chromium and chromium-driver.
picture: setup server
	@$(RUN) python -m tests.picture docs/pictures

# Record the histories that tests/replay replays, from this code.
record-histories: setup server
	@$(RUN) python -m tests.replay.record

setup: $(if $(filter .uv/bin/uv,$(UV)),.uv/bin/uv)
	@$(UV) sync --locked --quiet

.uv/bin/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: Python 3.11 or newer is needed; name it with PYTHON=…" >&2; exit 1; }
	@$(PYTHON) -m venv .uv && .uv/bin/pip install --quiet --disable-pip-version-check uv || { echo "make: uv could not be installed; a package index is needed" >&2; exit 1; }

# Fetch the Temporal server once into the user's cache folder; see docs/temporal.md.
server: setup
	@$(RUN) python -m temporal.server >/dev/null
