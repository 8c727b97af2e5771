.PHONY: demo test provisioned quick check golden bench clean
PYTHON ?= python3
BIN := .venv/bin

demo: .venv
	$(BIN)/grandrounds demo

test: .venv
	$(BIN)/python -m pytest -n 2 -m "not gpu and not provisioned" --durations=60 --durations-min=1

provisioned: .venv
	$(BIN)/python -m pytest -m provisioned

quick: .venv
	$(BIN)/python -m pytest -n 2 -m "not slow and not engine and not gpu and not browser and not provisioned"

check: .venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

golden: .venv
	$(BIN)/python -m pytest tests/golden --rewrite-golden

.venv: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch .venv

clean:
	rm -rf .venv build dist runs
