# make setup | test | test-faults | demo | results | results-run | compare | bench | clean | help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# What docs/results.md compares, each beside its untrained base.
RESULTS := ml100k bigrec-ml100k recformer-ml100k
# What docs/results.md compares side by side, the first things first.
COMPARISONS := compare-ml100k variants-ml100k final-ml100k study-heating study-partition \
	study-clients study-cut study-codec study-int8 study-privacy study-shuffle study-rates \
	final-ml100k-last-5 compare-ml100k-last-5
# Several processes share the cores: a thread that waits for another should not spin. Four suit two
# cores, since tests of real processes wait a lot. A file's tests stay together with what they share.
# Each process would compile all of fellrec anew where the environment forbids to keep what it compiled.
TESTS := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 GOMP_SPINCOUNT=0 $(BIN)/pytest
DEMO_OUT ?= runs/demo-$(shell date +%Y%m%d-%H%M%S)

.DEFAULT_GOAL := help
.PHONY: help setup test test-faults demo results results-run compare bench clean

help:  ## say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP)  ## make .venv with the tested versions; again only when they change

# Without --clear: an environment that is there is brought up to date, not thrown away. Compiled at
# once is what we import, a quarter of what pip would compile; the rest is when it is first needed.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -c 'import fellrec.federation.runs'
	@touch $@

test: $(STAMP)  ## style, types, tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy & mypy=$$!; $(TESTS) -n 4 --dist loadfile --no-loadscope-reorder --durations=12; tests=$$?; \
		wait $$mypy && exit $$tests

test-faults: $(STAMP)  ## kill every kind of process amid a round, and cut a connection; minutes each
	$(TESTS) -m faults --durations=0

demo: $(STAMP)  ## the full method on MovieLens-100K, in minutes; each time in a new folder
	$(BIN)/fellrec train demo --out $(DEMO_OUT)

results: $(STAMP)  ## docs/results.md again, from the finished runs kept in results/
	$(BIN)/fellrec results table --out docs/results.md

results-run: $(STAMP)  ## train what results/ lacks (hours), then docs/results.md; goes on if stopped
	$(BIN)/fellrec results run $(RESULTS)
	$(BIN)/fellrec results table --out docs/results.md

compare: $(STAMP)  ## make the cells that comparisons lack (a day), then docs/results.md; goes on if stopped
	@set -e; for name in $(COMPARISONS); do $(BIN)/fellrec compare $$name --jobs 2; done
	$(BIN)/fellrec results table --out docs/results.md

bench: $(STAMP)  ## every script in benchmarks/
	@set -e; for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script; done

clean:  ## remove caches and builds; .venv and runs stay
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis src/fellrec.egg-info
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
