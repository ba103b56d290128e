# `make help` lists the targets. Every target makes what it needs: the only prerequisite is Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
READY := $(VENV)/.ready

.PHONY: help env check test test-slow quantized harness browser chromium demo tables docs check-tables leaderboard recheck format clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

env: $(READY) ## the environment in .venv, with the versions of constraints.txt

# torch comes first and pinned. PyPI's wheel for Linux brings several GB for GPUs; without one give
# TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(BIN)/pip install --quiet -c constraints.txt -e '.[report,test,check]'
	touch $(READY)

check: $(READY) ## format, lint, types, direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python benchmarks/tables.py --check
	$(BIN)/python docs/reference.py --check

test: $(READY) ## everything that is not slow
	$(BIN)/pytest -n 2 -m 'not slow and not browser and not quantized and not harness and not devices'
	$(BIN)/pytest -n 2 -m devices

test-slow: $(READY) ## the rest
	$(BIN)/pytest -m 'slow and not browser and not quantized and not harness'

quantized: $(READY) ## 4- and 8-bit bases (fetches bitsandbytes into .quantized)
	test -d .quantized/bitsandbytes || $(BIN)/pip install --quiet --no-deps --target .quantized -c constraints.txt bitsandbytes
	PERDURE_QUANTIZED=required PYTHONPATH=.quantized $(BIN)/pytest -m quantized

harness: $(READY) ## lm-evaluation-harness (installs the extra lm-eval)
	$(BIN)/python -c 'import lm_eval' 2>/dev/null || $(BIN)/pip install --quiet -c constraints.txt -e '.[lm-eval]'
	PERDURE_HARNESS=required $(BIN)/pytest -m harness

browser: $(READY) ## the report page in a real browser (Debian's chromium)
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || $(MAKE) --no-print-directory chromium
	PERDURE_BROWSER=required $(BIN)/pytest -m browser

# An index that cannot be refreshed is no reason to stop: what it knows may be enough.
chromium:
	$(SUDO) apt-get update -qq || echo "apt-get update failed; going on with the package lists that are here"
	$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends chromium chromium-driver

demo: $(READY) ## five real tasks, three methods, about five minutes
	$(BIN)/perdure demo

tables: $(READY) ## every table in README and docs, from the records
	$(BIN)/python benchmarks/tables.py

docs: $(READY) ## what docs/ says from the code: keys of a configuration, what is deployed
	$(BIN)/python docs/reference.py

check-tables: $(READY) ## fail if a table is not what the records say
	$(BIN)/python benchmarks/tables.py --check

# Each step is planned from the records of the one before; records are committed, so an interrupted leaderboard goes on. A sweep
# ends with 1 if runs failed: that is a result too, and the next step counts them.
leaderboard: $(READY) ## go on with the leaderboard's missing runs (hours; needs PERDURE_CL_BENCHMARK)
	for step in tune runoff screen finals; do $(BIN)/python benchmarks/leaderboard/plan.py $$step || exit 1; \
	  for sweep in $$step $$([ $$step = finals ] && echo long); do \
	    $(BIN)/perdure sweep benchmarks/leaderboard/$$sweep.yaml --out benchmarks/leaderboard/$$sweep || [ $$? = 1 ] || exit 1; done; done
	$(BIN)/python benchmarks/tables.py

SEED := 0
recheck: $(READY) ## run two recorded quickstart runs anew, drawn by SEED, and compare
	$(BIN)/python benchmarks/recheck.py --seed $(SEED)

format: $(READY) ## put the code into shape
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove the environment and what tests left
	rm -rf $(VENV) .quantized .pytest_cache .ruff_cache .hypothesis
