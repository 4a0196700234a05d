# One word per task. `make` alone lists them.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
QUESTIONS ?= 48
LABELS ?=
SEED ?= 1
PART ?= held-out
MODELS ?=
# torch: constraints.txt pins 2.13.0. On Linux x86_64 the plain registry serves a CUDA build of several GB;
# point pip at a CPU build (PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL) before `make setup` to avoid that.

.DEFAULT_GOAL := help
.PHONY: help setup demo ui test test-browser test-wheel lint format typecheck constraints train accuracy screenshot seeds evaluation evaluation-quick faults bench-capture bench-ingest soak bench-attribution bench-methods bench-probe bench-support support-model support-model-adapted clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

setup: $(VENV)/.dev  ## virtual environment with everything, tests and linters included

# Debian's python3 may lack ensurepip: then pip is put in from outside.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make setup PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV) >/dev/null 2>&1 || { rm -rf $(VENV); $(PYTHON) -m venv --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install -q pip; }

$(VENV)/.all: pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing ragblame[all] into $(VENV) (about two minutes the first time)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[all]'
	@touch $@

$(VENV)/.dev: $(VENV)/.all
	@echo "installing the development tools into $(VENV)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(VENV)/.all  ## a real chain over real PostgreSQL, attributed, in the triage page (QUESTIONS=48)
	@$(BIN)/ragblame demo --questions $(QUESTIONS)

ui: $(VENV)/.all  ## the triage page on the configured database
	@$(BIN)/ragblame ui

# A file of tests at a time in each process, which has a server of its own; torch's threads would only collide.
# The long files come first (tests/conftest.py).
test: $(VENV)/.dev  ## the whole test suite, real PostgreSQL and Chromium (about ten minutes on two cores)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-browser: $(VENV)/.dev  ## only the tests that drive Chromium
	@$(BIN)/python -m pytest -q -m browser

test-wheel: $(VENV)/.dev  ## the built wheel in an empty environment runs the demo and the page
	@$(BIN)/python tests/wheel_install.py

lint: $(VENV)/.dev  ## ruff: rules and formatting
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(VENV)/.dev  ## let ruff rewrite what it can
	@$(BIN)/ruff check --fix -q .
	@$(BIN)/ruff format -q .

typecheck: $(VENV)/.dev  ## strict mypy over the mapped folders, tests and examples
	@$(BIN)/python tests/typecheck.py

constraints: $(VENV)/.dev  ## rewrite constraints.txt from what is installed
	@$(BIN)/python -m pip freeze --all --exclude-editable | sed -E 's/\+[a-z0-9.]+$$//; s/ @ .*//' | grep -v '^pip==' | grep -E '^[A-Za-z0-9._-]+==' | LC_ALL=C sort -f > constraints.txt

train: $(VENV)/.all  ## train the small model again from its seed (97 minutes on one shared core)
	@$(BIN)/python -m ragblame.attribution.world.training --seed 0 --out build/small-model

# LABELS: files of labelled answers; the sources held out are neither learned from nor tuned on (examples.py).
RUNS ?= 1 2
support-model: $(VENV)/.all  ## train the support model again (LABELS="a.jsonl.gz …"; 20 minutes a run on one core)
	@for seed in $(RUNS); do $(BIN)/python -m ragblame.attribution.support_model.training $(LABELS) --seed $$seed --out build/support-model/$$seed || exit 1; done
	@$(BIN)/python -m ragblame.attribution.support_model.fusing $(LABELS) $(RUNS:%=--run build/support-model/%/last)

# Needs a run of support-model; what ships has the published encoder (LOG.md says why).
support-model-adapted: $(VENV)/.all  ## the same with an encoder that learns along (LABELS="…"; about 90 minutes on one core)
	@$(BIN)/python -m ragblame.attribution.support_model.adapting $(LABELS) --run build/support-model/$(firstword $(RUNS))/last --seed 21 --out build/support-model/adapted
	@$(BIN)/python -m ragblame.attribution.support_model.fusing $(LABELS) --run build/support-model/adapted/last

accuracy: $(VENV)/.all  ## held-out accuracy of the shipped small model
	@$(BIN)/python -m ragblame.attribution.evaluation.accuracy

screenshot: $(VENV)/.dev  ## docs/triage.png from the demo, in real Chromium
	@$(BIN)/python -m tests.screenshot docs

# Further training seeds of the same script, for the evaluation: cached, never shipped; an interrupted run is resumed.
SEEDS ?= 1 2
SEEDS_AT ?= $(HOME)/.cache/ragblame/seeds
MODELS ?= $(SEEDS:%=$(SEEDS_AT)/%/model)

seeds: $(SEEDS:%=$(SEEDS_AT)/%/done)  ## train the further seeds of the evaluation (SEEDS="1 2", 90 minutes each on one core)

$(SEEDS_AT)/%/done: | $(VENV)/.all
	@mkdir -p $(@D)
	@$(BIN)/python -m ragblame.attribution.world.training --seed $* --out $(@D) --resume
	@touch $@

# LABELS: files of labelled answers (docs/evaluation.md names those it was made with), of which the sources that the
# support model never saw count (PART). SEED: which items are drawn; 1, as
# definitions were settled while looking at items of seed 0.
evaluation: QUICK :=
evaluation: OUT := build/evaluation
evaluation: PAGE := docs/evaluation.md
evaluation: $(VENV)/.all seeds  ## how right it is, into docs/evaluation.md (LABELS="a.jsonl.gz …"; SEEDS= for no further seeds)
	$(evaluate)

evaluation-quick: MODELS :=
evaluation-quick: QUICK := --quick
evaluation-quick: OUT := build/evaluation-quick
evaluation-quick: PAGE := build/evaluation-quick/evaluation.md
evaluation-quick: $(VENV)/.all  ## the same on a small part, into build/evaluation-quick
	$(evaluate)

define evaluate
@mkdir -p $(OUT) && rm -f $(OUT)/*.json
@$(BIN)/ragblame eval world $(QUICK) --seed $(SEED) $(addprefix --model ,$(MODELS)) --report $(OUT)/world.html --json > $(OUT)/1-world.json
@$(if $(LABELS),$(BIN)/ragblame eval labels $(LABELS) --part $(PART) $(QUICK) --report $(OUT)/labels.html --json > $(OUT)/2-labels.json,echo "no human labels: give files as LABELS=…")
@$(BIN)/python -m ragblame.attribution.evaluation.page $(OUT)/*.json --out $(PAGE)
@echo "written: $(PAGE), and pages in $(OUT)"
endef

faults: $(VENV)/.all  ## nine faults put into a working chain, and the causes given, into docs/faults.md (10 minutes)
	@$(BIN)/ragblame eval faults --seed $(SEED) --report docs/faults.md

# The other tracers live in an environment of their own: no user of ours needs them, and torch is not needed here.
BENCH := build/bench-capture

$(BENCH)/.peers: benchmarks/capture_peers.txt constraints.txt pyproject.toml
	@$(PYTHON) -m venv $(BENCH) >/dev/null 2>&1 || { rm -rf $(BENCH); $(PYTHON) -m venv --without-pip $(BENCH) && $(PYTHON) -m pip --python $(BENCH)/bin/python install -q pip; }
	@$(BENCH)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -e . -r benchmarks/capture_peers.txt
	@touch $@

bench-capture: $(BENCH)/.peers  ## what the callback adds to a chain, beside LangSmith, Langfuse, OpenInference (5 minutes)
	@$(BENCH)/bin/python benchmarks/capture_overhead.py --write

bench-ingest: $(VENV)/.dev  ## traces a second into PostgreSQL, beside raw COPY of the same bytes
	@$(BIN)/python benchmarks/ingest.py --write

MINUTES ?= 20
soak: $(VENV)/.dev  ## capture while PostgreSQL, the disk, the hosts and the clock fail (MINUTES=20)
	@$(BIN)/python benchmarks/fault_soak.py --minutes $(MINUTES) --write

bench-attribution: $(VENV)/.dev  ## what attributing one answer costs, beside captum on the same work
	@$(BIN)/python benchmarks/attribution_cost.py --write

METHODS := build/bench-methods

$(METHODS)/.peers: benchmarks/method_peers.txt constraints.txt pyproject.toml
	@$(PYTHON) -m venv $(METHODS) >/dev/null 2>&1 || { rm -rf $(METHODS); $(PYTHON) -m venv --without-pip $(METHODS) && $(PYTHON) -m pip --python $(METHODS)/bin/python install -q pip; }
	@$(METHODS)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[all]' -r benchmarks/method_peers.txt
	@touch $@

bench-methods: $(METHODS)/.peers  ## coalitions, sampled shares, saliency, rollout: beside captum, shap, context-cite, inseq (an hour)
	@$(METHODS)/bin/python benchmarks/chunk_shap.py --write
	@$(METHODS)/bin/python benchmarks/chunk_shap.py --long --quick --write
	@$(METHODS)/bin/python benchmarks/chunk_shap.py --growth --write
	@$(METHODS)/bin/python benchmarks/sampled_shapley.py --write
	@$(METHODS)/bin/python benchmarks/saliency.py --write
	@$(METHODS)/bin/python benchmarks/rollout.py --long --write

bench-probe: $(VENV)/.dev  ## what the corpus probe costs at a million rows (12 minutes, 3 GB of disk)
	@$(BIN)/python benchmarks/probe_scale.py

bench-support: $(VENV)/.dev  ## what the support model costs an answer
	@$(BIN)/python benchmarks/support_reading.py --write

clean:  ## remove the virtual environment and build outputs
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
