# make quickstart: fine-tuning beside SS-IL on scanned digits, from nothing to a report.
# make test: all tests. make lint: style. PYTHON chooses the interpreter of .venv.

PYTHON ?= python3
BIN := .venv/bin
RUNS := runs/quickstart
# Tests need all extras.
DEV := requirements-dev.txt $(patsubst %,requirements-%.txt,heic onnx serve slurm wandb)

.PHONY: quickstart test lint

quickstart: .venv/installed
	$(BIN)/python experiments/run.py --flagfile=quickstart.cfg --method=ft --workdir=$(RUNS)/ft
	$(BIN)/python experiments/run.py --flagfile=quickstart.cfg --method=ssil --workdir=$(RUNS)/ssil
	$(BIN)/python experiments/compare.py --workdir=$(RUNS)/ft --workdir=$(RUNS)/ssil --output=$(RUNS)

test: .venv/installed-dev lint
	$(BIN)/python -m pytest -q -n logical --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: requirements.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/installed-dev: $(DEV) .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(addprefix -r ,$(DEV))
	touch $@
