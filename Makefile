# make demo    a virtual environment, a shortcut model trained on real digits, samples, a results page
# make demo-latents    Fashion-MNIST in latents: a codec and a shortcut model trained on them, samples
# make test    the same environment, every test that needs no PyTorch
# make parity  networks against PyTorch transcriptions and diffusers (installs both, on the CPU)
# make page    exported web pages in headless Chromium (installs jax2onnx, and onnxruntime-web by npm)
# make soak    long campaigns of kills, stops and damage against what docs/running.md promises
# make drills  two processes of one job, one of which is killed, frozen, late, ...: the table of docs/clusters.md
# make docs    site/: the Python interface as HTML pages, made from the docstrings
# make notebook    site/digits.html: the notebook of examples/ with its pictures
# make lint    ruff, shellcheck
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
LATENT_DEMO ?= runs/demo_latents
LATENT_STEPS ?= 1500
DEMO_STEPS ?= 1200
# What suits a short run (docs/figures.md, "What else matters"), on half of the usual batch.
DEMO_FIELDS := --config.steps=$(DEMO_STEPS) --config.batch_size=64 --config.evaluate.steps="(1,4,32)" \
	--config.model.adaln_zero=False --config.path.name=trigflow \
	--config.objective.max_steps=32 --config.objective.label_dropout=0.0
LATENT_CONFIG := configs/fashion_mnist_latents.py
LATENT_FIELDS := --config.steps=$(LATENT_STEPS) --config.evaluate.steps="(1,4,32)" \
	--config.model.adaln_zero=False --config.path.name=trigflow \
	--config.objective.max_steps=32 --config.objective.label_dropout=0.0
TEST_WORKERS ?= 2
# test_frechet.py reads one file of it. In a folder of its own, since it installs a package `tests`.
FIDELITY := torch-fidelity==0.4.0
DRILLS ?=
SOAK ?= --kills=30 --stops=30 --damages=80 --preparations=10
# Folders whose modules have pages.
ROOMS := configs data densities diffusion eval latents models modes objectives samplers training weights

.PHONY: help demo demo-latents test parity page soak drills docs notebook lint lock clean

help:
	@sed -n 's/^# //p' Makefile | head -11

$(VENV)/.installed: requirements.txt requirements-dev.txt constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer with ensurepip on PATH; name one: make PYTHON=/path/to/python3.12" >&2; exit 2; }
	@echo "Installing into $(VENV) with $(PYTHON) (about a minute)"
	@$(PYTHON) -m venv $(VENV)
	@$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt -c constraints.txt
	@touch $@

# The commands of the README, on a shorter run; started again it goes on where it stopped.
demo: $(VENV)/.installed
	@echo "Training a shortcut model on 8 x 8 digits: $(DEMO)/digits"
	@$(RUN) main.py --config=configs/digits.py:shortcut --workdir=$(DEMO)/digits $(DEMO_FIELDS)
	@$(RUN) main.py --mode=report --workdir=$(DEMO)/digits --out=$(DEMO)/report.html
	@echo "One-step samples beside others: $$(ls $(DEMO)/digits/eval/step_*.png)"

# The commands of docs/latents.md, on shorter runs; started again it goes on where it stopped.
demo-latents: $(VENV)/.installed
	@test -d /usr/share/datasets/fashion-mnist || echo "Fashion-MNIST is downloaded now (30 MB); where it cannot be: apt install dataset-fashion-mnist (Debian)"
	@$(RUN) main.py --mode=prepare --config=configs/fashion_mnist.py
	@echo "Training a codec on Fashion-MNIST: $(LATENT_DEMO)/codec"
	@$(RUN) main.py --config=$(LATENT_CONFIG):autoencoder --workdir=$(LATENT_DEMO)/codec
	@echo "Training a shortcut model on its latents: $(LATENT_DEMO)/shortcut"
	@$(RUN) main.py --config=$(LATENT_CONFIG):shortcut --config.codec.weights=$(LATENT_DEMO)/codec \
		--workdir=$(LATENT_DEMO)/shortcut $(LATENT_FIELDS)
	@$(RUN) main.py --mode=report --workdir=$(LATENT_DEMO)/shortcut --out=$(LATENT_DEMO)/report.html
	@echo "Images and their reconstructions: $$(ls $(LATENT_DEMO)/codec/eval/step_*.png)"
	@echo "One-step samples beside others: $$(ls $(LATENT_DEMO)/shortcut/eval/step_*.png)"

test: $(VENV)/.installed
	$(RUN) -m pytest -n $(TEST_WORKERS) --dist=worksteal
	@echo "Left out: the parity tests against PyTorch (make parity)."

$(VENV)/.parity: $(VENV)/.installed requirements-parity.txt
	@$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-parity.txt -c constraints.txt
	@$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(VENV)/fidelity $(FIDELITY)
	@touch $@

parity: $(VENV)/.parity
	$(RUN) -m pytest -m parity

$(VENV)/.page: $(VENV)/.installed requirements-export.txt
	@$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-export.txt -c constraints.txt
	@npm install --silent --no-audit --no-fund --prefix $(VENV)/page onnxruntime-web
	@touch $@

page: $(VENV)/.page
	$(RUN) -m pytest -m parity tests/parity/test_onnx.py tests/parity/test_web.py

soak: $(VENV)/.installed
	$(RUN) -m tests.soak $(SOAK)

drills: $(VENV)/.installed
	$(RUN) -m tests.drills $(DRILLS)

$(VENV)/.docs: $(VENV)/.installed requirements-docs.txt
	@$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-docs.txt -c constraints.txt
	@touch $@

docs: $(VENV)/.docs
	@rm -rf site
	@$(RUN) -W ignore::UserWarning -m pdoc --output-directory site fewstep fewstep.library $(ROOMS:%=fewstep.%)
	@echo "Open site/fewstep.html"

notebook: $(VENV)/.docs
	@mkdir -p site && cp examples/digits.ipynb site
	@PYTHONPATH=$(CURDIR) $(RUN) -m nbconvert --to html --execute site/digits.ipynb
	@echo "Open site/digits.html"

lint: $(VENV)/.installed
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(VENV)/bin/shellcheck -x launch/*.sh launch/slurm.sbatch .ci/run

# What PyTorch needs stays open: its CUDA libraries are of other versions than those of JAX.
lock:
	grep -v '^torch' requirements-parity.txt | uv pip compile --universal --python-version 3.11 --no-header --no-annotate requirements-dev.txt requirements-docs.txt requirements-export.txt - -o constraints.txt

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache site
