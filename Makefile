# make run    set up and start the app          make test   set up and run every test
# make check  the fast part of the tests        make setup  the environment alone (.venv)
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
REQUIREMENTS := requirements.txt requirements-demo.txt requirements-dev.txt
STAMP := $(VENV)/.installed

.PHONY: run setup test check lint fast slow paper screenshots clean
.DELETE_ON_ERROR:

run: $(STAMP)
	$(PY) app.py $(ARGS)

setup: $(STAMP)

# torch comes first and alone: a later line that admits a newer torch then installs nothing more.
$(STAMP): $(REQUIREMENTS)
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Plumb needs Python 3.11 or newer; name one with make PYTHON=python3.11 …")'
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' requirements.txt)"
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-dev.txt
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-demo.txt
	touch $@

lint: $(STAMP)
	$(PY) -m ruff check --no-cache .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# A process a core, each with one thread: two tests side by side are faster than one with two threads. The tests of a
# file share one process, since they share fixtures.
PYTEST = OMP_NUM_THREADS=1 $(PY) -m pytest -n logical --maxprocesses 4 --dist loadfile

fast: $(STAMP)
	$(PYTEST) -m "not slow and not browser"

check: lint fast

test: lint
	$(PYTEST)

# The paper in miniature; ARGS="--size full --ifeval FILE" for more of it.
paper: $(STAMP)
	$(PY) -m jobs paper $(ARGS)

screenshots: $(STAMP)
	$(PY) docs/screenshots.py

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
