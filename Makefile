# One environment in the clone, one command that checks everything: `make test`. `make` alone lists the targets.
# Where pip looks for packages is the user's setting (PIP_* variables, pip's configuration); nothing here names an index.

VENV ?= .venv
PYTHON ?= $(or $(SIGNCORE_PYTHON),python3)

BIN := $(VENV)/bin
RUN := $(BIN)/python
# A file and not the folder, so that a broken install is tried again and a changed pin installs anew.
STAMP := $(VENV)/.signcore-installed

# Keras' own default needs TensorFlow.
export KERAS_BACKEND ?= torch

.DEFAULT_GOAL := help
.PHONY: help env demo test check lint types doctests fresh wheel examples bench prove stubs golden gpu clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "%-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv "$(VENV)"
	$(RUN) -m pip install --no-compile -c constraints.txt -e '.[all,dev]'
	# pip compiles one file after the other, and packages' own tests as well; some files are no Python 3
	$(RUN) -m compileall -q -j 2 -x '/tests?/|/testing/_internal/' "$(VENV)/lib" || true
	touch "$@"

env: $(STAMP)  ## create the environment and install the project with everything but CuPy

demo: $(STAMP)  ## run the demonstration, which writes demo/report.md and demo/trajectories.png
	$(RUN) -m signcore_conformance demo

test: check  ## everything: the checks, all tests, a quick run of the conformance suite
	$(RUN) -m pytest -n 2 --dist worksteal tests --ignore tests/test_wheel.py
	$(RUN) -m signcore_conformance --quick

check: $(STAMP)  ## format, lint, types, doctests, golden files, stubs, wheel
	$(MAKE) --no-print-directory -j 2 types fresh lint doctests wheel

lint:
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .

types:
	$(RUN) -m mypy --strict

doctests:
	$(RUN) -m pytest --doctest-modules signcore adapters

fresh:
	$(RUN) -m signcore_conformance.regen --check
	$(RUN) tools/make_stubs.py --check
	$(RUN) tools/make_tables.py --check

wheel:
	$(RUN) -m pytest tests/test_wheel.py

examples: $(STAMP)  ## run the examples, which train on small real data
	$(RUN) -m pytest tests/test_examples.py

bench: $(STAMP)  ## measure the speed
	$(RUN) bench/run.py

stubs: $(STAMP)  ## write the .pyi files of the generated classes, the README's table of rules and docs/adapters.md
	$(RUN) tools/make_stubs.py
	$(RUN) tools/make_tables.py

prove: $(STAMP)  ## run the enumerations again, which write docs/results/*.json
	$(RUN) tools/prove_arcsin.py
	$(RUN) tools/prove_normal.py --draws 100000000
	$(RUN) tools/prove_rounding.py

golden: $(STAMP)  ## write the golden files again (needs an entry in CHANGELOG.md)
	$(RUN) -m signcore_conformance.regen

# No environment here: a GPU machine may have no network, so this takes $(PYTHON) with the frameworks it has.
gpu: export PYTHONPATH := $(CURDIR):$(CURDIR)/adapters:$(CURDIR)/conformance:$(PYTHONPATH)
gpu:  ## run suite and primitives on the GPU with $(PYTHON) as it is, into docs/results/; installs nothing
	$(PYTHON) -m signcore_conformance gpu --json docs/results/gpu.json
	$(PYTHON) -m signcore_conformance primitives --json docs/results/gpu-primitives.json \
	  --backends numpy cupy torch-cuda torch-cuda-compile jax-cuda jax-cuda-jit

# The environment stays, since VENV may name one that serves other work as well; the next target installs anew.
clean:  ## remove caches and outputs
	rm -rf build dist demo .mypy_cache .pytest_cache .ruff_cache .hypothesis "$(STAMP)"
	find . \( -path ./.git -o -path ./.venv \) -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +
