PYTHON ?= python3
BIN := .venv/bin
.PHONY: demo test test-rest test-all quick nemesis check golden docs clean
# Every process of a federation would compile the package anew where an image forbids to keep that.
unexport PYTHONDONTWRITEBYTECODE
PYTEST = $(BIN)/python -m pytest -n 2 --dist worksteal

demo: .venv
	$(BIN)/grandrounds demo

test: .venv  # what any machine can run: files, processes, sockets, a browser
	$(PYTEST) -m "not full and not gpu" --durations=60 --durations-min=1

test-rest: .venv  # what test leaves out: whole grids, fault schedules, more federations
	$(PYTEST) -m "full and not gpu" --durations=60 --durations-min=1

test-all: .venv
	$(PYTEST) -m "not gpu" --durations=60 --durations-min=1

SEEDS ?= 100
FROM ?= 40
nemesis: .venv  # more schedules of faults than the 40 of test-all
	$(BIN)/python -m tests.nemesis --seeds $(SEEDS) --from $(FROM)

quick: .venv
	$(PYTEST) tests/unit tests/journeys -m "not (slow or engine or browser or full or gpu)"

check: .venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

golden: .venv
	$(BIN)/python -m pytest tests/golden --rewrite-golden

docs: .venv/docs
	$(BIN)/python scripts/docs.py build/docs

.venv/docs: pyproject.toml constraints.txt | .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	touch $@

.venv: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch .venv

clean:
	rm -rf .venv build dist runs
