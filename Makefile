# Two commands are all a newcomer needs: `make demo` and `make test`. Both prepare .venv first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup wheel demo test nightly minimum lint format types docs notebooks linkcheck clean

setup: .venv/.ready

.venv/.ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@touch $@

wheel:  ## wheel and sdist, in dist/; needs no .venv
	rm -rf dist && $(PYTHON) -m venv build/builder
	build/builder/bin/python -m pip install --quiet --disable-pip-version-check build
	build/builder/bin/python -m build

demo: setup  ## the whole pipeline on the embedded world
	$(BIN)/compal demo

test: setup  ## a process per core; each file stays in one, as its tests share what they load
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

nightly: setup  ## the tests with 10,000 fuzzed inputs in place of 500
	COMPAL_FUZZ=10000 $(BIN)/python -m pytest tests/stores

# Libraries of others warn of what came after them, so warnings are none of this run's errors. What is tested is chosen
# by TESTS. 7 GB; remove .venv-minimum afterwards.
TESTS ?= tests
minimum: .venv-minimum/.ready  ## the tests with the lowest versions that pyproject.toml allows, on Python 3.11
	.venv-minimum/bin/python -m pytest -W default --disable-warnings --numprocesses auto --dist loadfile $(TESTS)

.venv-minimum/.ready: pyproject.toml tests/minimum.txt
	python3.11 -m venv .venv-minimum
	.venv-minimum/bin/python -m pip install --quiet --disable-pip-version-check --constraint tests/minimum.txt --editable ".[dev]"
	@touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# mypy needs a folder that is named like the package; the checkout may be named anything. The examples are typed
# against it as a user's code is.
ROOMS := $(wildcard *.py) py.typed api cli console publish stores world pipeline align eval assets
EXAMPLES := $(patsubst %.py,-m %,$(subst /,.,$(wildcard examples/*.py examples/*/*.py)))
types: setup
	@mkdir -p build/typed/compal && find build/typed -xtype l -delete
	@ln -sfn $(addprefix "$(CURDIR)"/,$(ROOMS)) build/typed/compal/ && ln -sfn "$(CURDIR)/examples" build/typed/examples
	cd build/typed && "$(CURDIR)/$(BIN)/mypy" --config-file "$(CURDIR)/pyproject.toml" -p compal $(EXAMPLES)

docs: setup  ## the site, in build/docs; a warning is an error
	$(BIN)/sphinx-build -b html -W --keep-going -n -q docs build/docs
	@echo build/docs/index.html

linkcheck: setup  ## asks every address that the site names; needs the network
	$(BIN)/sphinx-build -b linkcheck -W --keep-going -n -q docs build/linkcheck

notebooks: setup  ## execute them in place and strip what another machine would write otherwise
	OMP_NUM_THREADS=1 $(BIN)/python docs/notebooks/execute.py

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache
