# Two commands do all set-up from a fresh clone: `make quickstart` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
# Set-up is done anew when the dependencies change. The quickstart needs less than the tests do.
RUNTIME := .venv/.runtime-installed
TESTING := .venv/.test-installed

.PHONY: quickstart test style lint bench bench-quick test-cuda bench-cuda drill clean

quickstart: $(RUNTIME)
	$(BIN)/python jobs/quickstart.py

# Two at a time: tests of a Ray cluster spend much of their time waiting for processes to start. The types are a test.
test: style
	$(BIN)/pytest -n 2 --dist loadgroup --no-loadscope-reorder --durations 20

lint: style
	$(BIN)/mypy

style: $(TESTING)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python tools/check_docstrings.py
	$(BIN)/python tools/check_docs.py

bench: $(TESTING)
	mkdir -p runs
	$(BIN)/pytest tests/benchmarks --benchmark-only --benchmark-columns=median,ops,rounds -s \
		--benchmark-json runs/bench.json
	$(BIN)/python -m tests.benchmarks.ratios runs/bench.json --write

# Half a minute of it, as CI runs it: says what became slower by more than a fifth, and does not fail for that.
bench-quick: $(TESTING)
	mkdir -p runs
	$(BIN)/pytest tests/benchmarks --benchmark-only -m quick -q --benchmark-columns=median,rounds \
		--benchmark-json runs/bench-quick.json
	$(BIN)/python -m tests.benchmarks.ratios runs/bench-quick.json

# With a CUDA card; without one the tests skip, and say so. make bench-cuda writes its tables to BENCH.
BENCH ?= runs/bench-cuda
test-cuda: $(TESTING)
	$(BIN)/pytest tests/cuda -m cuda -rs

bench-cuda: $(TESTING)
	$(BIN)/python -m tests.cuda $(BENCH) --only speed --only cluster

# A release is drilled: kills, faults and damage, half an hour. make drill DRILL="--only kill-raylet --seed 7"
drill: $(TESTING)
	$(BIN)/python -m tests.drills $(DRILL)

$(BIN)/python:
	$(PYTHON) -m venv .venv

$(RUNTIME): $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[quickstart]'
	touch $@

$(TESTING): $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@ $(RUNTIME)

clean:
	rm -rf .venv runs build .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
