# `make` alone prints the commands below. Every one sets up the environment it needs, once.
PYTHON ?= python3
VENV ?= .venv
TASK ?= auto
SEEDS ?= 0
BIN := $(VENV)/bin
NBVAL = $(BIN)/python -m pytest --nbval --nbval-current-env --nbval-cell-timeout=900
PIP := $(BIN)/python -m pip --disable-pip-version-check
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup reports report-pdf exp5 diagnosis notebooks test quick notebooks-test test-slow browser gpu lint bench bench-gpu lab docs readme badges clean

help: ## print this
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## (.*)/  make \1\t\2/' | expand -t 18
	@echo 'Variables: TASK=auto (smollm with a GPU, else small, trained once), small, smollm or gpt2; SEEDS=trainings (by'
	@echo 'default 3 for TASK=small, else 1), PYTHON=python3 (3.11 or newer), VENV=.venv'

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is missing or older than 3.11: pass PYTHON=/path/to/python3.11 or newer" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.ready: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install --quiet --constraint constraints.txt --editable '.[lab]'
	@touch $@

$(VENV)/.ready-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@ $(VENV)/.ready

setup: $(VENV)/.ready ## virtual environment and installation

reports: $(VENV)/.ready ## experiments 1 to 4 on the task that suits this machine -> reports/report.html, reports/small/index.html, with a GPU reports/index.html
	$(BIN)/python -m warp_nb.report --task $(TASK) --seeds $(SEEDS)

report-pdf: $(VENV)/.ready ## reports/report.html printed to reports/report.pdf, by Chromium
	$(BIN)/python -m warp_nb.report --pdf

exp5: $(VENV)/.ready ## experiment 5, T = 100 -> the same document (hours on two cores with TASK=smollm)
	$(BIN)/python -m warp_nb.report exp5 --task $(TASK) --seeds $(SEEDS)

diagnosis: $(VENV)/.ready ## why the original saw what it saw: runs that the table lacks, the report
	$(BIN)/python -m warp_nb diagnosis --workers 2 --table warp_nb/studies/diagnosis.json
	$(BIN)/python -m warp_nb.report diagnosis

notebooks: $(VENV)/.ready ## run and time the committed notebooks again, all but exp5, outputs kept in place
	$(BIN)/python -m warp_nb guide

lint: $(VENV)/.ready-dev ## ruff, mypy, and import-linter: a room imports only from rooms below it
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports

test: lint quick notebooks-test ## lint, the quick tests, the notebooks run again and compared
	@echo 'Left to `make test-slow`: tests that train, execute reports or kill processes. Left to `make browser`: the pages'
	@echo 'in Chromium. Left out: exp1 to exp3, whose cells are those of exp4; exp5 as a whole, a short run of it is slow.'

quick: $(VENV)/.ready-dev ## the tests without the slow ones, side by side
	$(BIN)/python -m pytest -m "not slow and not browser" -p no:nbval -n auto --maxprocesses 4 --dist worksteal

notebooks-test: $(VENV)/.ready-dev
	kept=$$(mktemp -d) && OMP_NUM_THREADS=1 WARP_NB_LESSONS=$$kept $(NBVAL) --nbval-sanitize-with=tests/nbval.cfg \
	  -n auto --maxprocesses 2 --dist loadfile \
	  --ignore-glob='*/exp[1235].ipynb' --ignore=notebooks/diagnosis.ipynb notebooks && $(NBVAL) notebooks/diagnosis.ipynb

test-slow: $(VENV)/.ready-dev ## the tests that train, execute reports and kill processes
	$(BIN)/python -m pytest -m "slow and not browser" -p no:nbval -n auto --maxprocesses 2 --dist loadfile

browser: $(VENV)/.ready-dev ## the pages, and the lessons in JupyterLab, in headless Chromium
	$(BIN)/python -m pytest -m browser -n auto --maxprocesses 2 --dist load

bench: $(VENV)/.ready-dev ## speed and memory against peers and the floor -> benchmarks/README.md
	$(BIN)/python -m benchmarks

bench-gpu: $(VENV)/.ready-dev ## on one CUDA card: steps and evaluation beside TRL, the floor and the targets
	$(BIN)/python -m benchmarks.gpu

gpu: $(VENV)/.ready-dev ## on one CUDA card, in 8 minutes: gpu tests, bench-gpu, reports of smollm, exp5 -> reports/gpu/
	PYTHON=$(BIN)/python bash scripts/gpu.sh

lab: $(VENV)/.ready ## JupyterLab at the first page of the notebooks
	$(BIN)/python -m jupyter lab notebooks/index.ipynb

docs: $(VENV)/.ready-dev ## guides and API reference -> site/index.html; with REPO=owner/name links to code lead there
	NO_MKDOCS_2_WARNING=1 REPO='$(REPO)' $(BIN)/python -m mkdocs build --strict

readme: $(VENV)/.ready ## the figures of README.md from *.result.json of both tasks
	$(BIN)/python -m warp_nb.report --readme

badges: ## Colab badges and the install address: make badges REPO=owner/name
	$(PYTHON) scripts/badges.py '$(REPO)'

clean: ## remove the environment, the site and tool caches; reports stay
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache .coverage *.egg-info build
