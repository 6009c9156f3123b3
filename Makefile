# make quickstart: fine-tuning beside SS-IL on scanned digits, from nothing to a report.
# make test: all tests. make lint: style. PYTHON chooses the interpreter of .venv.

PYTHON ?= python3
BIN := .venv/bin
RUNS := runs/quickstart
# Tests need all extras.
DEV := requirements-dev.txt $(patsubst %,requirements-%.txt,heic onnx serve slurm wandb)
# One seed on each core: runs as small as these gain little from a second one.
JOBS = $$($(BIN)/python -c "from ssil_jax import system; print(min(3, system.usable_cores()))")

.PHONY: quickstart test lint

quickstart: .venv/installed
	$(BIN)/python experiments/sweep.py --methods=ft,ssil --seeds=0,1,2 --jobs=$(JOBS) \
	  --output=$(RUNS) -- --flagfile=quickstart.cfg

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
