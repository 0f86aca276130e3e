# make report and make test set up what is missing by themselves.
PYTHONS := 3.11 3.12 3.13
# The first that runs; 3.11 made the tracked tables.
PYTHON ?= $(shell for each in $(PYTHONS:%=python%); do $$each -c "" 2> /dev/null && echo $$each && exit; done; echo python3)
VENV := .venv
RUN := $(VENV)/bin/python
PARAMS ?= notebooks/params/tiny.yaml
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= true

.PHONY: help setup report book browser verify smoke test bench settings toy causes choices readings posttrain reference \
        real estimators lint clean
help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 12

$(VENV)/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = "%d.%d" % sys.version_info[:2]; sys.exit(v not in "$(PYTHONS)".split() and "Python $(PYTHONS) are known to work, got " + v + ": make PYTHON=/path/to/python3.11")'
	@test ! -e $(VENV)/unfinished || rm -rf $(VENV)  # an installation was cut short
	mkdir -p $(VENV) && touch $(VENV)/unfinished
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	rm $(VENV)/unfinished
	touch $@

setup: $(VENV)/ready ## create .venv with the locked requirements

report: setup ## train the suite, measure it, run the notebooks, build the book (PARAMS=file)
	$(RUN) -m reptrace report --params $(PARAMS)

book: setup ## the same pages from the tracked records in data/archive, without training (minutes)
	$(RUN) -m reptrace book

browser: setup ## tests of the pages, in Chromium, over the whole book that was built last (minutes)
	@book=$$(ls -t build/*/key 2> /dev/null | head -1); test -n "$$book" || { echo "no book: make report or make book" >&2; exit 1; }; \
	REPTRACE_BOOK=$$(dirname "$$book")/_build/html $(RUN) -m pytest tests/report/test_book.py

verify: setup ## train one run of the suite anew, measure it, compare with data/archive (minutes)
	$(RUN) -m reptrace verify

smoke: ## make report with a suite trained for seconds
	$(MAKE) report PARAMS=notebooks/params/smoke.yaml

test: setup ## pytest, two files at a time
	$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

bench: setup ## speed against scikit-learn and against plain loops, as ratios; writes data/results/bench.csv, README's tables
	$(RUN) studies/bench.py

settings: setup ## train every setting of studies/settings.yaml; writes data/results/settings_tried.csv (an hour)
	$(RUN) studies/settings.py

toy: setup ## the toy model's phases over starts and settings; writes data/results/toy_*.csv (an hour)
	$(RUN) studies/toy_starts.py
	$(RUN) studies/toy_prevalence.py

causes: setup ## train with one cause of the phases changed at a time; writes data/results/causes*.csv (19 minutes)
	$(RUN) studies/causes.py

choices: setup ## measure the suite by other tokens, texts, lengths and definitions; writes data/results/choices*.parquet (5 minutes)
	$(RUN) studies/choices.py

readings: setup ## other readings of the geometry, on the default suite; writes data/results/readings.csv (6 minutes)
	$(RUN) studies/readings.py

posttrain: setup ## train bases, then SFT, DPO and RLVR; writes data/results/posttrain_* and robustness_* (SMOKE=1, TRIALS=1)
	$(RUN) studies/posttrain.py $(if $(SMOKE),--group smoke) $(if $(TRIALS),--trials)

reference: setup ## the reference suite, goes on where it stood; writes data/results/reference (hours; HOURS=2.5 stops it)
	$(RUN) studies/reference.py $(if $(HOURS),--hours $(HOURS))

real: setup ## fetch a published model (93 MB) and measure it; writes data/results/real_*.csv (a quarter of an hour)
	$(RUN) studies/real.py

estimators: setup ## what few sequences do to RankMe, alpha and turns; writes data/results/estimator_*.csv (ten minutes)
	OMP_NUM_THREADS=1 $(RUN) studies/estimators.py

lint: setup ## ruff, and the direction of imports between the wings
	$(RUN) -m ruff check .
	$(VENV)/bin/lint-imports

clean: ## remove what was built, models and records too; keep .venv
	rm -rf build
