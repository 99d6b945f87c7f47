# Everything runs in a virtual environment that this file creates: Python 3.10 or newer and make are enough.
#   make PYTHON=python3.12 VENV=/tmp/venv test    another interpreter, another place
#   make CONSTRAINTS= test                        newest versions that pyproject.toml allows

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= .ci/constraints.txt
JOBS ?= 2
OUT ?= demo-out
ZOO ?= transformers segmentation-models-pytorch ultralytics

BIN := $(VENV)/bin
RUN_STAMP := $(VENV)/.installed-all
DEV_STAMP := $(VENV)/.installed-dev
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check \
	$(if $(CONSTRAINTS),--constraint $(CONSTRAINTS))

# One thread a process: xdist already fills the cores, and sums over threads differ in their last digits.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
SITE := $(ONE_THREAD) $(BIN)/sphinx-build --conf-dir docs --fail-on-warning --keep-going --fresh-env
# A process that dies ends the run: a replacement may wait forever.
PYTEST := $(ONE_THREAD) $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup --max-worker-restart 0

# Together they use every dependency: the code of all pages, the scripts in examples/, pruning and exporting.
CORE := tests/project/test_readme.py tests/project/test_examples.py tests/pipeline/test_prune.py \
	tests/export/test_export.py tests/adapters/test_ultralytics.py::test_the_page tests/latency/test_openvino.py

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint format types contracts docs links unit core oldest release sweep sweep-zoo bench \
	latency tables no-training coverage clean distclean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(RUN_STAMP) ## prune, export and verify a real multi-task network; results in demo-out/
	@echo "== demo: train, vote, prune, fine-tune, export, verify -> $(OUT)/"
	$(BIN)/disparse demo --out $(OUT)

test: lint types contracts docs unit ## lint, types, import contracts, the site and the tests

lint: $(DEV_STAMP) ## ruff: rules and format
	@echo "== lint"
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(DEV_STAMP) ## let ruff repair what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(DEV_STAMP) ## mypy --strict on the package
	@echo "== types"
	$(BIN)/mypy

contracts: $(DEV_STAMP) ## who may import whom
	@echo "== import contracts"
	$(BIN)/lint-imports

docs: $(DEV_STAMP) ## the documentation site, in build/site; warnings are errors
	@echo "== site -> build/site/index.html"
	$(SITE) --builder html --quiet . build/site

links: $(DEV_STAMP) ## check external links: needs a network
	$(SITE) --builder linkcheck --quiet . build/links

unit: $(DEV_STAMP) ## the tests alone
	@echo "== tests on $(JOBS) processes"
	$(PYTEST) $(ARGS)

core: $(DEV_STAMP) ## the tests that use every dependency: minutes
	@echo "== the core's tests on $(JOBS) processes"
	$(PYTEST) $(CORE) $(ARGS)

oldest: ## the same with the oldest versions that pyproject.toml allows, in .venv-oldest
	@test -x .venv-oldest/bin/uv || \
		{ $(PYTHON) -m venv .venv-oldest && .venv-oldest/bin/python -m pip install --disable-pip-version-check uv; }
	$(MAKE) core VENV=.venv-oldest CONSTRAINTS= \
		PIP_INSTALL=".venv-oldest/bin/uv pip install --python .venv-oldest/bin/python --resolution lowest-direct"

release: $(DEV_STAMP) ## build sdist and wheel in dist/, and check them in empty environments
	$(PIP_INSTALL) --editable ".[release]"
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python .ci/release.py

sweep: $(DEV_STAMP) ## the heavy tests, then every timm family beside stock Torch-Pruning: many hours, resumable
	@echo "== sweep on $(JOBS) processes"
	$(PYTEST) -m sweep $(ARGS)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.timm_sweep --jobs $(JOBS)

sweep-zoo: $(DEV_STAMP) ## networks from other libraries (installs them): an hour on two cores, resumable
	@echo "== networks from other libraries on $(JOBS) processes"
	$(PIP_INSTALL) $(ZOO)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.zoo_sweep --jobs $(JOBS)

bench: $(RUN_STAMP) ## the benchmarks that need no data: tables and JSON
	@echo "== benchmarks"
	$(BIN)/python -m benchmarks.saliency
	$(BIN)/python -m benchmarks.planning
	$(BIN)/python -m benchmarks.large_models
	$(BIN)/python -m benchmarks.default_call

latency: $(RUN_STAMP) ## milliseconds in ONNX Runtime, beside stock: hours on an idle machine, resumable, most important first
	$(BIN)/python -m benchmarks.latency

tables: $(RUN_STAMP) ## DiSparse's tables at desk scale: an hour on two cores; needs the data packs
	$(BIN)/python -m benchmarks.disparse_tables
	$(BIN)/python -m benchmarks.disparse_tables --only loss-scale
	$(BIN)/python -m benchmarks.disparse_tables --only branch
	$(BIN)/python -m benchmarks.disparse_tables --only variants

no-training: $(RUN_STAMP) ## accuracy without training, against stock: two hours on two cores; needs the data packs
	$(BIN)/python -m benchmarks.no_training.networks
	$(BIN)/python -m benchmarks.no_training --jobs 2

coverage: $(DEV_STAMP) ## the tests in one process, with coverage
	$(ONE_THREAD) $(BIN)/coverage run -m pytest $(ARGS)
	$(BIN)/coverage report

clean: ## remove what builds, tests and the demo leave
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis \
		.coverage $(OUT)
	find adapters benchmarks disparse_structured export tests -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## clean, and remove the virtual environments
	rm -rf $(VENV) .venv-oldest

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "Python 3.10 or newer is needed; '$(PYTHON)' is not. Say: make PYTHON=/path/to/python3.12"; exit 1; }
	@echo "== virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { \
		echo "'$(PYTHON) -m venv' failed. On Debian and Ubuntu: apt install python3-venv"; \
		rm -rf $(VENV); exit 1; }

# Older than the environment's own python by design: only a change of the requirements installs again.
$(RUN_STAMP): pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	@echo "== install (the first time: about 75 s and 5.6 GB, nearly all of it PyTorch)"
	$(PIP_INSTALL) --editable ".[all]"
	@touch $@

$(DEV_STAMP): pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	@echo "== install with the test tools (the first time: about 75 s and 5.6 GB, nearly all of it PyTorch)"
	$(PIP_INSTALL) --editable ".[dev]"
	$(PIP_INSTALL) --no-deps "facenet-pytorch>=2.6"  # an example's detector; its requirements exclude ours
	@touch $@ $(RUN_STAMP)
