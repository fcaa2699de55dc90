# make demo    a virtual environment, a shortcut model trained on real digits, samples, a results page
# make test    the same environment, every test that needs no PyTorch
# make parity  the DiT against a PyTorch transcription (installs PyTorch, on the CPU)
# make lint    ruff
# make lock    exact versions again, from the ranges in requirements*.txt

SHELL := /bin/bash
.DEFAULT_GOAL := help

# The first Python on PATH that is 3.11 or newer and can make a virtual environment.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python; do \
	$$p -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
	&& command -v $$p && break; done)
VENV ?= .venv
RUN := $(VENV)/bin/python
DEMO ?= runs/demo
TEST_WORKERS ?= 2

.PHONY: help demo test parity lint lock clean

help:
	@sed -n 's/^# //p' Makefile | head -5

$(VENV)/.installed: requirements.txt requirements-dev.txt constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer with ensurepip on PATH; name one: make PYTHON=/path/to/python3.12" >&2; exit 2; }
	@echo "Installing into $(VENV) with $(PYTHON) (about a minute)"
	@$(PYTHON) -m venv $(VENV)
	@$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt -c constraints.txt
	@touch $@

demo: $(VENV)/.installed
	$(RUN) main.py --mode=demo --config=configs/digits.py:shortcut --workdir=$(DEMO)

test: $(VENV)/.installed
	$(RUN) -m pytest -n $(TEST_WORKERS)
	@echo "Left out: the parity tests against PyTorch (make parity)."

$(VENV)/.parity: $(VENV)/.installed requirements-parity.txt
	@$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-parity.txt -c constraints.txt
	@touch $@

parity: $(VENV)/.parity
	$(RUN) -m pytest -m parity

lint: $(VENV)/.installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

lock:
	uv pip compile --universal --python-version 3.11 --no-header --no-annotate requirements-dev.txt -o constraints.txt

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
