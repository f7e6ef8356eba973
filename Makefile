# Everything starts here: `make help`. Nothing is installed outside this folder.

# The first Python that runs and is new enough; 3.11 first, with which the pinned CPU environment was tested.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
GPU := $(shell nvidia-smi -L >/dev/null 2>&1 && echo yes)

# torch as a CPU build: from a folder of wheels if pip was given one that has it, else from PyTorch's own index.
TORCH := 2.13.0
TORCH_INDEX ?= $(if $(wildcard $(addsuffix /torch-$(TORCH)*,$(PIP_FIND_LINKS))),,https://download.pytorch.org/whl/cpu)

BIN := .venv/bin
PIP = $(BIN)/python -m pip install --disable-pip-version-check --quiet
PINS := requirements/cpu-sglang.txt

MODEL ?=
WORKERS ?= $(if $(and $(MODEL),$(GPU)),0,2)
TINY := var/tiny

TRACES ?=
RESULTS ?= docs/results
LAB = $(addprefix --traces ,$(TRACES)) --out $(RESULTS)

.DEFAULT_GOAL := help
.PHONY: help install serve test check bench bench-full fix clean

help: ## show this
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

install: .venv/.complete ## set up .venv: SGLang as upstream pins it where there is a GPU, else for the CPU

serve: install ## serve MODEL=folder-or-name, or a tiny model, with WORKERS=n (a GPU host: one per GPU)
	@mkdir -p var/run
	$(if $(MODEL),,$(BIN)/prebled model tiny $(TINY))
	$(BIN)/prebled start --model $(or $(MODEL),$(TINY) --served-model-name tiny) --workers $(WORKERS) \
		--http 127.0.0.1:8000 --listen unix:var/run/prebled.sock --listen tcp:127.0.0.1:8001

test: install .venv-front-ends/.complete ## run all tests
	$(BIN)/python -m pytest

check: install ## formatting, lint, types, import layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layers.py

bench: install ## compare the policies on TRACES=folder, or generated workloads; writes RESULTS=docs/results
	$(BIN)/prebled bench lab $(LAB)

bench-full: install ## the same on whole traces and three seeds: hours
	$(BIN)/prebled bench lab $(LAB) --full --seeds 0 1 2

fix: install ## format, and correct what lint can correct
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove the environments, caches and the tiny model
	rm -rf .venv .venv-front-ends .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist *.egg-info var

.venv/.complete: pyproject.toml $(if $(GPU),,$(PINS))
	$(if $(PYTHON),,$(error no Python 3.11 or newer was found: name one with `make PYTHON=...`))
	@echo "setting up .venv with $(PYTHON) for $(if $(GPU),a GPU,the CPU); this takes minutes, once"
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
ifeq ($(GPU),yes)
	$(PIP) -e '.[sglang,dev]'
else
	$(PIP) -c $(PINS) torch==$(TORCH) setuptools $(addprefix --extra-index-url ,$(TORCH_INDEX))
	$(PIP) --no-deps -r $(PINS)
	@echo "pip will now list requirements of sglang that are not met: they are for GPUs"
	$(PIP) -c $(PINS) -e '.[dev]'
endif
	@touch $@

# The OpenAI SDK and the llm tool, as tests use them, need versions that clash with SGLang's pins.
.venv-front-ends/.complete: requirements/front-ends.txt
	@echo "setting up .venv-front-ends"
	@test -x .venv-front-ends/bin/python || $(PYTHON) -m venv .venv-front-ends
	.venv-front-ends/bin/python -m pip install --disable-pip-version-check --quiet -r $<
	@touch $@
