# GNU make 3.81 (the one on macOS) and up. PYTHON=... chooses the interpreter that `make setup` builds .venv with.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup setup-judge setup-vllm demo test test-judge test-vllm check lint types imports bench proto faults soak fuzz constraints clean

BIN := .venv/bin
STAMP := .venv/.setup-stamp
PEER_STAMP := .venv-trl/.setup-stamp
VLLM_ENV := $(or $(TERSELY_VLLM_ENV),.venv-vllm)
JUDGE_ENV := $(or $(TERSELY_JUDGE_ENV),.venv-judge)
EXTRAS := trainer,rollout-torch,scorer,embedding,hub,dev
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)
CODE := services shared scripts tests $(wildcard bench/*.py)

help: ## Show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) setup-judge ## Make .venv and .venv-judge with everything a run on one machine needs (quick when nothing changed)

$(STAMP): pyproject.toml constraints.txt
	@if [ -z "$(PYTHON)" ]; then echo "tersely needs Python 3.11 or newer, and none was found on PATH." \
		"Install one (macOS: brew install python@3.12; Debian: apt-get install python3 python3-venv)" \
		"or name it: make setup PYTHON=/path/to/python3.12" >&2; exit 1; fi
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"tersely needs Python 3.11 or newer; $(PYTHON) is {v[0]}.{v[1]}.")'
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv .venv || { rm -rf .venv; \
		echo "Could not make .venv with $(PYTHON). On Debian: apt-get install python3-venv" >&2; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

setup-judge: $(STAMP) ## Make .venv-judge (or what TERSELY_JUDGE_ENV names) for the judge: DeepEval, older click than .venv
	@$(BIN)/python scripts/judge_env.py $(JUDGE_ENV)

setup-vllm: setup ## Make .venv-vllm (or what TERSELY_VLLM_ENV names) for workers on vLLM: 3.6 GB, older transformers than .venv
	@$(BIN)/python scripts/vllm_env.py $(if $(TERSELY_VLLM_BASE),--base $(TERSELY_VLLM_BASE)) $(VLLM_ENV)

demo: setup ## Train a 135M chat model to a length of 32 tokens on this machine; ends with `report: PATH`
	@$(BIN)/tersely up recipes/demo.toml --run-dir "runs/demo-$$(date +%Y%m%d-%H%M%S)"

test: setup ## Run every test (no network; needs redis-server for one half of the queue contract)
	@HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 $(BIN)/python -m pytest $(PYTEST_ARGS)
	@$(if $(PYTEST_ARGS),,$(MAKE) --no-print-directory test-judge)

# DeepEval brings plugins of pytest that nothing here asks for.
test-judge: setup-judge ## Run the tests of the judge that need DeepEval, in its environment
	@PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 $(JUDGE_ENV)/bin/python -m pytest -p pytest_timeout tests/on_judge $(PYTEST_ARGS)

# vLLM fills a process; so the contract suite and what only vLLM has to keep get one each. Its first load takes a minute.
test-vllm: setup-vllm ## Run the tests of the vLLM engine in its environment (fetches SmolLM2-135M, 93 MB, the first time)
	@$(BIN)/python -c 'from tersely.models.locate import locate_model; locate_model("smollm2-135m")'
	@HF_HUB_OFFLINE=1 $(VLLM_ENV)/bin/python -m pytest --timeout 600 tests/contract/engine --engine vllm $(PYTEST_ARGS)
	@HF_HUB_OFFLINE=1 $(VLLM_ENV)/bin/python -m pytest --timeout 600 tests/on_vllm $(PYTEST_ARGS)

faults: setup ## Kill, stop, starve and mislead it (SEED=n); twenty minutes; writes build/faults.json, logs in build/faults
	@$(BIN)/python scripts/faults.py $(if $(SEED),--seed $(SEED))

soak: setup ## Kill a random role every few seconds in three runs of ten minutes (SOAK_SECONDS=600)
	@for seed in 0 1 2; do $(BIN)/python scripts/soak.py --seed $$seed --seconds $(or $(SOAK_SECONDS),600) --out build/soak-$$seed.json || exit 1; done

fuzz: setup ## Try 100,000 made-up inputs on every reader (FUZZ_ARGS="--inputs N --seconds S --seed N"); writes build/fuzz.json
	@$(BIN)/python scripts/fuzz.py $(FUZZ_ARGS)

bench: setup $(PEER_STAMP) ## Time our learner and whole step beside TRL, in turns (BENCH_ARGS=--quick leaves TRL out)
	@$(BIN)/tersely bench learner $(BENCH_ARGS)

$(PEER_STAMP): bench/trl/requirements.txt constraints.txt | $(STAMP)
	@[ -x .venv-trl/bin/python ] || $(BIN)/python -m venv .venv-trl
	@.venv-trl/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r bench/trl/requirements.txt
	@touch $@

check: lint types imports ## Formatting, lint, types, import rules, stub freshness, house rules, links
	@$(BIN)/python scripts/stubs.py --check
	@$(BIN)/python scripts/house.py

lint: setup
	@$(BIN)/ruff format --check --quiet $(CODE) || { echo "run: $(BIN)/ruff format $(CODE)" >&2; exit 1; }
	@$(BIN)/ruff check --quiet $(CODE)

types: setup
	@$(BIN)/mypy services shared scripts

imports: setup
	@out=$$($(BIN)/lint-imports 2>&1) || { echo "$$out" >&2; exit 1; }

proto: setup ## Regenerate the stubs in shared/tersely/v1 from proto/
	@$(BIN)/python scripts/stubs.py

constraints: setup ## Rewrite constraints.txt from what .venv holds
	@{ grep '^#' constraints.txt; $(BIN)/python -m pip freeze --exclude-editable | sed 's/+[a-z0-9.]*$$//' | sort -f; } > constraints.tmp
	@mv constraints.tmp constraints.txt && touch $(STAMP)

clean: ## Remove caches (not .venv, not runs/)
	@rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
