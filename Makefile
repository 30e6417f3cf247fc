# Everything runs in .venv, made by pip from the exact lock in images/local.
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
LOCK := images/local/requirements.txt images/local/requirements-vllm.txt
READY := $(VENV)/ready
KEEP ?= 1

.DEFAULT_GOAL := help
.PHONY: help run test test-demo lint compile clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 18

run: compile ## the whole pipeline on this machine: data to a chat answer (KEEP=0 ends by itself)
	@$(BIN)/llm-finetune run --resume $(if $(filter 0,$(KEEP)),--no-keep,--keep) $(ARGS)

test: lint ## lint, types and all tests
	@$(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

test-demo: $(READY) ## the demo with the real small model, held to its figures (some minutes)
	@$(BIN)/python -m pytest -m demo $(ARGS)

lint: $(READY)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@mkdir -p $(VENV)/types/llm_finetune
	@ln -sfn $(CURDIR)/components $(CURDIR)/pipelines $(VENV)/types/llm_finetune/
	@MYPYPATH=$(VENV)/types $(BIN)/mypy -p llm_finetune

compile: $(READY) ## write pipelines/compiled/finetune.yaml
	@$(BIN)/llm-finetune compile

$(READY): $(LOCK) pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-deps -r images/local/requirements.txt
	$(BIN)/pip install --quiet torch==2.13.0 # where only the package index is, the libraries that its build needs
	$(BIN)/pip install --quiet --no-deps -r images/local/requirements-vllm.txt || echo "vLLM has no build for this machine: transformers serve will be used"
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m compileall -qq $(VENV)/lib || true # some packages carry files for newer Pythons
	@touch $@

clean: ## remove what runs have left
	rm -rf runs build
