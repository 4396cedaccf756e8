# Every target sets up what it needs; a fresh machine needs Python 3.10 or newer, git and gcc.
PYTHON ?= python3
VENV   ?= .venv
OUT    ?= out/demo
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
READY  := $(VENV)/.ready
BUILT  := $(VENV)/.built

.PHONY: help demo test test-slow test-gpu test-native audit lint bench bench-cpu bench-gpu bench-search build clean
help:          ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*##/\t/' | expand -t 12

# torch first and alone: see constraints.txt.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -q -c constraints.txt torch==2.13.0 setuptools pybind11
	touch $@

$(BUILT): $(READY) setup.py $(shell find csrc -type f)
	$(PIP) install -q -c constraints.txt --no-build-isolation -e '.[dev]'
	touch $@

build: $(BUILT) ## set up the virtual environment and compile the extension

demo: build    ## train a joint image-text space, search it, and write out/demo/report.html
	$(BIN)/mmfast demo --out $(OUT)

lint: build    ## ruff, clang-format and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(shell find csrc tests -name '*.cpp' -o -name '*.h')
	$(BIN)/mypy

test: lint     ## lint, types and the unit tests
	$(BIN)/python -m pytest -m "not slow" -n 2

test-slow: build ## the tests that take longer; MMFAST_STRESS_SECONDS=300 stresses threads for minutes
	$(BIN)/python -m pytest -m slow -n 2

test-gpu: build ## the kernels compiled and run, on a machine with a GPU
	TRITON_INTERPRET=0 $(BIN)/python -m pytest tests/test_gpu.py -n 8

test-native:   ## the engine's own tests: with sanitizers, and emulated for 64-bit Arm where that is installed
	tests/native/run

audit: build   ## compile the GPU kernels for every architecture, and check what they were compiled to
	mkdir -p out
	$(BIN)/python -m mmfast.kernels.audit $(AUDIT) --out out/audit.md

bench: build   ## measure everything against everything a user would pick instead
	mkdir -p out
	$(BIN)/python -m pytest benchmarks --benchmark-enable --benchmark-json=out/bench.json
	$(BIN)/mmfast bench out/bench.json

bench-cpu: build ## measure the CPU engine beside the eager idiom and one X @ X.T
	$(BIN)/python -m benchmarks.interleaved --preset cpu --json out/cpu.json
	$(BIN)/mmfast bench out/cpu.json

bench-gpu: build ## measure the loss on a GPU beside everything a user would pick there
	$(BIN)/python -m benchmarks.gpu --json out/gpu.json

bench-search: build ## measure the index beside everything a user would pick instead
	$(PIP) install -q -c constraints.txt -e '.[peers]' --no-build-isolation
	mkdir -p out
	$(BIN)/python -m benchmarks.search --json out/search.json

clean:         ## remove everything the other targets made
	rm -rf $(VENV) build dist out *.egg-info mmfast/*.so .hypothesis .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
