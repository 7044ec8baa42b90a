# Two commands do all the set-up: `make demo` and `make test`. Neither installs again what is there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The study runs on what is on this machine; nothing here waits for a hub.
OFFLINE := HF_HUB_OFFLINE=1
PYTEST := $(BIN)/python -m pytest
# Where it is set, every process compiles anew all that it imports.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint types unit gpu bench format clean

demo: $(VENV)/.installed
	$(OFFLINE) $(BIN)/nestling run

test: lint types unit

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: $(VENV)/.installed-test
	$(BIN)/mypy

# Two processes of one thread each: half the time of one process of two threads, on two cores.
unit: $(VENV)/.installed-test
	$(OFFLINE) OMP_NUM_THREADS=1 $(PYTEST) --numprocesses 2 --dist loadfile --no-loadscope-reorder

# With CUDA graphs on a GPU, which `unit` skips.
gpu: export CUDA_VISIBLE_DEVICES ?= 0
gpu: $(VENV)/.installed-test
	$(BIN)/python -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "torch sees no GPU here")'
	$(OFFLINE) $(PYTEST) tests/training/fast/test_cuda_graphs.py

bench: $(VENV)/.installed-test
	$(OFFLINE) $(BIN)/python benchmarks/evaluation.py --quick

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# A stamp is newer than what it was installed from, or the installation runs again. Modules are compiled when they are
# first imported: a third of them are, and pip would compile all, one after the other.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import sys; sys.exit("nestling needs Python 3.11 or later; set PYTHON=python3.11 (this is %s)" % sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[bundled]'
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[bundled,test]'
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
