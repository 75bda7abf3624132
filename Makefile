# Two commands are all a newcomer needs: `make demo` and `make test`. Both prepare .venv first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test nightly lint format types docs linkcheck clean

setup: .venv/.ready

.venv/.ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	@touch $@

demo: setup  ## the whole pipeline on the embedded world
	$(BIN)/compal demo

test: setup  ## a process per core; each file stays in one, as its tests share what they load
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

nightly: setup  ## the tests with 10,000 fuzzed inputs in place of 500
	COMPAL_FUZZ=10000 $(BIN)/python -m pytest tests/stores

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

clean:
	rm -rf build .pytest_cache .mypy_cache .ruff_cache
