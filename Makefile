.PHONY: demo test quick check golden docs clean
PYTHON ?= python3
BIN := .venv/bin

demo: .venv
	$(BIN)/grandrounds demo

test: .venv
	$(BIN)/python -m pytest -n 2 -m "not gpu" --durations=60 --durations-min=1

quick: .venv
	$(BIN)/python -m pytest -n 2 -m "not slow and not engine and not gpu and not browser"

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
