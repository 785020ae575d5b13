# make tune: install and run the default study. make test: install and run all tests. make bench: the benchmarks.
PYTHON ?= python3
VENV := .venv
DATA ?= $(or $(TUNE_SPARSITY_DATA),../shared/data)
BIN := $(VENV)/bin
TESTERS ?= 2
INSTALLED := $(VENV)/.installed

.PHONY: install compile tune test lint format bench wheel clean
install: $(INSTALLED)

$(INSTALLED): pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

compile: install
	MUST_COMPILE=1 $(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .

tune: install
	$(BIN)/tune-sparsity --target 0.9

test: install lint
	$(BIN)/python -m pytest --numprocesses $(TESTERS) --dist loadfile --no-loadscope-reorder

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install
	$(BIN)/python -m benchmarks.step
	$(BIN)/python -m benchmarks.hoyer
	$(BIN)/python -m benchmarks.tracking
	$(BIN)/python -m benchmarks.search --cost
	$(BIN)/python -m benchmarks.driver --trials 1000
	$(BIN)/python -m benchmarks.studies --data-dir $(DATA)

wheel: install
	$(BIN)/python -m build --wheel --outdir dist .

clean:
	rm -rf build dist *.egg-info src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
