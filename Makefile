# `make train` and `make test` are all a fresh clone needs: they build their own environment in .venv first.
# Options of the command behind a target go in ARGS: make train ARGS="--epochs 5", make test ARGS="-k lif".

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

BIN := $(VENV)/bin
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip --quiet
# What the installed package depends on; a change here reinstalls (the install is editable: Python files need no more).
NATIVE := pyproject.toml setup.py $(wildcard MANIFEST.in) sca_kernels/version.py $(shell find csrc -type f 2>/dev/null)

.PHONY: train test lint format sanitize bench build clean help
.DELETE_ON_ERROR:

train: build ## train, prune and compact a spiking network on the embedded data set
	$(BIN)/sca train $(ARGS)

test: build ## run the whole test suite
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile $(ARGS)

lint: $(VENV)/.tools ## check style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.tools ## mend style and format where that is safe
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

# Beside the usual build, which it leaves alone; the interpreter is no sanitized program, so their libraries come first.
# torch leaks on purpose; NaN and Inf divide by zero as IEEE has it. What tests start finds this build first, too; before
# Python 3.11 it would find the folder it runs in.
SANITIZED := build/sanitized
PRELOADED = $(shell $(CC) -print-file-name=libasan.so):$(shell $(CC) -print-file-name=libstdc++.so)
sanitize: build ## run all kernel tests on a build with AddressSanitizer and UndefinedBehaviorSanitizer
	SCA_KERNELS_SANITIZE=address,undefined $(BIN)/python setup.py --quiet build --build-lib $(SANITIZED) --build-temp $(SANITIZED)-objects
	export SCA_KERNELS_SANITIZE=address,undefined LD_PRELOAD=$(PRELOADED) ASAN_OPTIONS=detect_leaks=0 \
	    UBSAN_OPTIONS=print_stacktrace=1 PYTHONSAFEPATH=1 PYTHONPATH=$(CURDIR)/$(SANITIZED) \
	    PYTEST_ADDOPTS="-o 'pythonpath=$(SANITIZED) .'"; \
	$(BIN)/python -c 'import sca_kernels._cpu as m; assert "$(SANITIZED)" in m.__file__, m.__file__' && \
	$(BIN)/python -m pytest -n auto --dist worksteal -m 'not compile_only' tests/kernels $(ARGS)

bench: $(VENV)/.peers ## measure against the peers, store the results, print the table
	$(BIN)/python -m benchmarks.run $(ARGS)

build: $(VENV)/.build ## make .venv, with the native part compiled

clean: ## remove .venv and everything built (runs and results stay)
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis .benchmarks *.egg-info python/*.egg-info sca_kernels/_*.so
	find benchmarks python sca_kernels tests -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1: /p' $(MAKEFILE_LIST)

# Each stamp is touched last, so an interrupted step runs again.
$(VENV)/.tools: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed; name one: make PYTHON=python3.x")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt pip
	$(PIP) install -c constraints.txt setuptools wheel pybind11 ruff
	@touch $@

# Without isolation: the build tools above are pinned, and a rebuild asks no package index for them.
# Without warnings: setuptools has one about every editable install.
$(VENV)/.build: $(VENV)/.tools $(NATIVE)
	PYTHONWARNINGS=ignore $(PIP) install -c constraints.txt --no-build-isolation -e '.[train,test]'
	@touch $@

# SpikingJelly's and norse's own requirements hold a torchvision that has no CPU build, tonic's hold librosa: none of what
# is measured imports these.
$(VENV)/.peers: $(VENV)/.build benchmarks/requirements.txt
	$(PIP) install -c constraints.txt -r benchmarks/requirements.txt
	$(PIP) install -c constraints.txt --no-deps spikingjelly norse tonic
	@touch $@
