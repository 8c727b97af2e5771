PYTHON ?= python3
BIN := .venv/bin
.PHONY: demo test test-rest test-again test-all quick nemesis check golden results results-check docs clean
# Every process of a federation would compile the package anew where an image forbids to keep that.
unexport PYTHONDONTWRITEBYTECODE
PYTEST = $(BIN)/python -m pytest -n 2 --dist worksteal

demo: .venv/run  # needs what runs need, and nothing that developers use
	$(BIN)/grandrounds demo

test: .venv/dev  # what any machine can run: files, processes, sockets, a browser
	$(PYTEST) -m "not full and not gpu" --durations=60 --durations-min=1

test-rest: .venv/dev  # what test leaves out: whole grids, fault schedules, more federations, which wait
	$(PYTEST) -n 3 -m "full and not gpu" --durations=60 --durations-min=1

test-again: .venv/dev  # the tests that failed in the last run, one after the other
	$(BIN)/python -m pytest --last-failed --last-failed-no-failures none -m "not gpu" -rpfE

test-all: .venv/dev
	$(PYTEST) -m "not gpu" --durations=60 --durations-min=1

SEEDS ?= 100
FROM ?= 24
nemesis: .venv/dev  # more schedules of faults than the 24 of test-all
	$(BIN)/python -m tests.nemesis --seeds $(SEEDS) --from $(FROM)

quick: .venv/dev
	$(PYTEST) tests/unit tests/journeys -m "not (slow or engine or browser or full or gpu)"

check: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

golden: .venv/dev
	$(BIN)/python -m pytest tests/golden --rewrite-golden

results: .venv/run  # runs the demo, and writes its numbers and pictures in README and docs anew
	$(BIN)/python scripts/results.py run

results-check: .venv/run  # says which numbers in docs are of another program than this one
	$(BIN)/python scripts/results.py check

docs: .venv/docs
	$(BIN)/python scripts/docs.py build/docs

INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
MADE = test -x $(BIN)/python || $(PYTHON) -m venv .venv

.venv/run: pyproject.toml constraints.txt
	$(MADE)
	$(INSTALL) -e .
	touch $@

.venv/dev: pyproject.toml constraints.txt
	$(MADE)
	$(INSTALL) -e ".[dev]"
	touch $@ .venv/run

.venv/docs: pyproject.toml constraints.txt | .venv/run
	$(INSTALL) -e ".[docs]"
	touch $@

.venv: .venv/dev ;

clean:
	rm -rf .venv build dist runs
