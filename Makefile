# make test: set up, then all tests.   make demo: set up, then train on digits.
PYTHON ?= python3
RUN := .venv/bin/python
# Tests that run side by side, each with one thread: make test JOBS=8.
JOBS ?= 2
SUITE := OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n $(JOBS) --dist loadfile

# make fuzz: thousands of new cases instead of the suite's hundreds, and what
# takes a minute a test.
# make faults: trainings killed twenty times instead of once.
# make test-compat: with other versions and the official packages; 45 GiB.
.PHONY: setup test test-compat fuzz faults demo docs lint format clean

setup:
	@$(PYTHON) tools/dev/bootstrap.py

test: setup lint
	$(SUITE) --durations=20

test-compat:
	@$(PYTHON) tools/dev/compat.py

fuzz: setup
	MMDAT_TEST_LONG=1 $(RUN) -m pytest -q --hypothesis-profile=fuzz \
		-m 'fuzz or long'

faults: setup
	MMDAT_TEST_KILLS=20 $(RUN) -m pytest -q tests/test_tools/test_faults.py

demo: setup
	PYTHON=$(RUN) bash tools/demo.sh

# The documentation site at http://127.0.0.1:8000, made anew after each change.
docs: setup
	$(RUN) -m mkdocs serve

lint: setup
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

format: setup
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean:
	rm -rf .venv .venv-compat build dist site *.egg-info mmdat/.mim .pytest_cache .ruff_cache
