# Two commands on a fresh machine: `make avatars` (draw a set with the model of this package) and `make test`.
# Each makes .venv with the pinned versions of constraints.txt first. Needs git, make and Python 3.11 or newer.
SHELL := /bin/bash
OUT ?= out
IDENTITY ?= seed:1000012
EXPRESSIONS ?= joy; joy:0.5; sadness; anger; fear; surprise; disgust; contempt; love; pity; 0.5*joy + 0.5*surprise; AU43=1

PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
  $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
# One process for each processor; a file stays in one, as its tests share what they train and compile.
PYTEST := $(BIN)/python -m pytest -n logical --dist loadfile --no-loadscope-reorder
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: avatars train-tiny test test-fast test-torch lint clean
.DELETE_ON_ERROR:

avatars: .venv/ready
	$(BIN)/python -m genaffect_jax.sample --identity $(IDENTITY) --expressions '$(EXPRESSIONS)' --out $(OUT)/avatars

# A small model from nothing, and a set of it.
train-tiny: .venv/ready
	$(BIN)/python -m genaffect_jax.train --config configs/avatar_tiny.py --workdir $(OUT)/avatar_tiny
	$(BIN)/python -m genaffect_jax.sample --model $(OUT)/avatar_tiny --identity $(IDENTITY) \
	  --expressions '$(EXPRESSIONS)' --out $(OUT)/tiny

test: .venv/ready-dev lint
	$(PYTEST) --ignore tests/parity

test-fast: .venv/ready-dev
	$(PYTEST) --ignore tests/parity -m 'not slow'

# Parity with diffusers; PyTorch is a large download, so it is not part of `make test`.
test-torch: .venv/ready-torch
	$(PYTEST) tests/parity

lint: .venv/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo 'Python 3.11 or newer is needed; set PYTHON=/path/to/python' >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/ready: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) --editable .
	@touch $@

.venv/ready-dev: .venv/ready
	$(PIP) --editable '.[dev]'
	@# insightface asks for opencv-python, which needs libGL; slim machines have none.
	@$(BIN)/python -c 'import cv2' 2>/dev/null || $(PIP) --force-reinstall --no-deps opencv-python-headless
	@touch $@

.venv/ready-torch: .venv/ready-dev
	$(PIP) torch
	$(PIP) --editable '.[dev,torch]'
	@touch $@

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
