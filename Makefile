# make tune: install and run the default study. make test: install and run all tests. make bench: the benchmarks.
# make quick: the tests of single modules and of strangers' networks, without the slow ones.
# make long: all tests with ten times as many generated cases, those that are only run there, and studies that are broken.
# make lowest, make newest: quick tests and the default study with the lowest and the newest versions that are allowed.
PYTHON ?= python3
VENV := .venv
DATA ?= $(or $(TUNE_SPARSITY_DATA),../shared/data)
BIN := $(VENV)/bin
TESTERS ?= 2
TEST := -m pytest --numprocesses $(TESTERS) --dist loadfile --no-loadscope-reorder
INSTALLED := $(VENV)/.installed
NEWEST ?= $(or $(shell python3.13 -c 'import sys; print(sys.executable)' 2>/dev/null),$(PYTHON))

.PHONY: install compile tune test quick lint format bench wheel docs clean long lowest newest
install: $(INSTALLED)

$(INSTALLED): pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,others]'
	touch $@

compile: install
	MUST_COMPILE=1 $(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .

tune: install
	$(BIN)/tune-sparsity --target 0.9

test: install lint
	$(BIN)/python $(TEST)

quick: install
	$(BIN)/python $(TEST) -m "(unit or strangers) and not slow"

long: install lint
	$(BIN)/python $(TEST) --hypothesis-profile long
	rm -rf benchmarks/out/long
	$(BIN)/python -m benchmarks.chaos --driver 4 --worker 2 --disk 1 --out benchmarks/out/long

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: install
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --conf-dir docs . build/site

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

# $(call with,VENV,PYTHON,OPTIONS): installs with these options of pip, runs the quick tests but those of docker/, which
# is for the versions of constraints.txt, and the default study, whose record must hold its 32 trials and itself.
define with
	$(2) -m venv $(1)
	$(1)/bin/python -m pip install --quiet --upgrade pip
	$(1)/bin/python -m pip install --quiet $(3) --editable '.[cluster,dev]'
	$(1)/bin/python $(TEST) -m "unit and not slow" -k "not docker"
	rm -rf $(1)/run && mkdir $(1)/run
	cd $(1)/run && ../bin/tune-sparsity --target 0.9
	cd $(1)/run && ../bin/python -c 'import mlflow; mlflow.set_tracking_uri("sqlite:///mlflow.db"); \
		assert len(mlflow.search_runs(search_all_experiments=True)) == 33, "the record is not complete"'
endef

lowest:
	$(call with,.venv-lowest,$(PYTHON),--constraint constraints-lowest.txt)

newest:
	$(call with,.venv-newest,$(NEWEST),--upgrade --upgrade-strategy eager)

wheel: install
	$(BIN)/python -m build --wheel --outdir dist .

clean:
	rm -rf build dist *.egg-info src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
