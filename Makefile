# All targets run in .venv, which pip creates from the lock in images/local.
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
LOCK := images/local/requirements.txt images/local/requirements-vllm.txt
READY := $(VENV)/ready
KEEP ?= 1
# One more than the number of cores, because many tests wait for a server or a process to start.
WORKERS := $(shell expr $$(nproc) + 1)

.DEFAULT_GOAL := help
.PHONY: help run test card test-demo test-manifests lint compile clean images images-lock test-images sbom audit test-soak test-gpu bench

help: ## list of targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 18

run: compile ## the whole pipeline on this machine, with the demo (KEEP=0 stops the server)
	@$(BIN)/llm-finetune run --resume $(if $(filter 0,$(KEEP)),--no-keep,--keep) $(ARGS)

test: lint ## lint, types and all tests
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-demo: $(READY) ## the demo with the real small model, and its metrics (some minutes)
	@$(BIN)/python -m pytest -m demo $(ARGS)

test-manifests: $(READY) ## every overlay with every component, against Kubernetes 1.28 to 1.37 (some minutes)
	@$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder tests/manifests -m "manifests or not manifests" $(ARGS)

test-soak: $(READY) ## tests of large datasets and long runs (many minutes)
	@$(BIN)/python -m pytest -m soak $(ARGS)

bench: $(READY) ## benchmarks without GPU: training, data, merge; each prints its ratios as JSON
	@for bench in train_cpu data merge; do echo "== $$bench"; $(BIN)/python tests/bench/$$bench.py; done

lint: $(READY)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --cache-dir $(VENV)/import-linter

compile: $(READY) ## write signatures, docs/settings.md, schema, pipelines/compiled and manifests/kfp
	@$(BIN)/llm-finetune compile
	@$(BIN)/llm-finetune compile --format kubernetes

card: $(READY) ## create a card with a passing test (NAME=data/count_words; CONTRIBUTING.md)
	@$(BIN)/python -m llm_finetune.pipelines.new_card $(NAME)

images: $(READY) ## build the images [REGISTRY= TAG= TORCH=cpu BUILDER= BASE= PUSH=1 PIN=1] (docs/images.md)
	@$(BIN)/python -m images.build $(if $(REGISTRY),--registry $(REGISTRY)) $(if $(TAG),--tag $(TAG)) \
		$(if $(TORCH),--torch $(TORCH)) $(if $(BUILDER),--builder $(BUILDER)) $(if $(BASE),--base $(BASE)) \
		$(if $(filter 1,$(PUSH)),--push) $(if $(filter 1,$(PIN)),--pin) $(ARGS)

images-lock: $(READY) ## update the locks of the images from pyproject.toml
	@$(BIN)/python -m images.build --locks

test-images: $(READY) ## build the images and run every card in its image (as root; docs/images.md)
	@$(BIN)/python -m pytest -m images -s tests/images $(ARGS)

sbom: $(READY) ## a bill of materials per image, in build/sbom
	@$(BIN)/python -m images.inventory sbom

audit: $(READY) ## known vulnerabilities of the locked versions
	@$(BIN)/python -m images.inventory audit $(ARGS)

$(READY): $(LOCK) pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile --no-deps -r images/local/requirements.txt
	$(BIN)/pip install --quiet --no-compile torch==2.13.0 # installs also the libraries that this build of PyTorch depends on
	$(BIN)/pip install --quiet --no-compile --no-deps -r images/local/requirements-vllm.txt || echo "no build of vLLM for this machine: local runs will use transformers serve"
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true # some packages contain files for newer Python versions
	@touch $@

clean: ## remove the output of runs and builds
	rm -rf runs build
