# make demo | demo-video | demo-detection | test | test-lowest | check | format | parity | parity-detection | bench
# uv is used when it is installed, plain pip otherwise. PYTHON=python3.12 chooses the interpreter.

VENV ?= .venv
LOWEST ?= .venv-lowest
PYTHON ?= python3
PYTEST_FLAGS ?=
BIN := $(VENV)/bin
HAS_UV := $(shell uv --version >/dev/null 2>&1 && echo yes)

ifeq ($(HAS_UV),yes)
create = uv venv --quiet --allow-existing --python $(PYTHON) $(1)
install = uv pip install --python $(1)/bin/python
else
create = $(PYTHON) -m venv $(1)
install = $(1)/bin/python -m pip install --disable-pip-version-check
endif

# 2.13.0 is the one release that is never installed here.
TORCH := 'torch!=2.13.0'
TORCH_LOWEST := 'torch==2.11.*' 'torchvision==0.26.*'

.PHONY: demo demo-video demo-detection test test-slow test-lowest check format parity parity-detection bench

demo: $(VENV)/.stamp-package
	$(BIN)/openmvit demo image

demo-video: $(VENV)/.stamp-package
	$(BIN)/openmvit demo video

demo-detection: $(VENV)/.stamp-package
	$(BIN)/openmvit demo detection

# Two processes with a thread each, file by file.
test: $(VENV)/.stamp-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile $(PYTEST_FLAGS)

# Tests that build, install, compile or start several processes, two at a time as well.
test-slow: $(VENV)/.stamp-test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow -n 2 --dist worksteal $(PYTEST_FLAGS)

test-lowest: $(LOWEST)/.stamp-test
	$(LOWEST)/bin/python -m pytest -q $(PYTEST_FLAGS)

check: $(VENV)/.stamp-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.stamp-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

parity: $(VENV)/.stamp-test
	$(BIN)/python tests/parity/report.py

parity-detection: $(VENV)/.stamp-test
	$(BIN)/python tests/parity/report_detection.py

# An hour or two: every table of benchmarks/, one file each, then the pages that hold their figures.
bench: $(VENV)/.stamp-test
	$(BIN)/python benchmarks/tables.py
	$(BIN)/python docs/refresh.py

# Stamps: nothing is installed again until pyproject.toml changes.
$(VENV)/.stamp-python:
	$(call create,$(VENV))
	$(BIN)/python -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=python3.12")'
	touch $@

$(VENV)/.stamp-package: $(VENV)/.stamp-python pyproject.toml
	$(call install,$(VENV)) $(TORCH) -e .
	touch $@

$(VENV)/.stamp-test: $(VENV)/.stamp-package
	$(call install,$(VENV)) $(TORCH) -e '.[test]'
	touch $@

$(LOWEST)/.stamp-test: pyproject.toml
	$(call create,$(LOWEST))
	$(call install,$(LOWEST)) $(TORCH_LOWEST) -e '.[test]'
	touch $@
