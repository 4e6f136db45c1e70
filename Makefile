# The two commands: `make demo` (the whole job on demo data, or on the files in data/) and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test setup challenges bundle submission results bench lint clean

demo: setup
	$(BIN)/python -m workbench.demo

test: challenges
	$(BIN)/python -m pytest

setup: .venv/.done

# Made again when the requirements change; a half-made environment has no .done and is completed.
.venv/.done: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-dev.txt
	touch $@

# What the sister systems in challenges/ need on top (torch: 200 MB for the processor alone, more with CUDA).
challenges: setup .venv/.challenges

.venv/.challenges: requirements-challenges.txt .venv/.done
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-challenges.txt
	touch $@

# One notebook that carries its files, for Colab, Kaggle and the platform's one-file upload.
bundle: setup
	$(BIN)/python -m workbench.bundle

# main.py for `crunch test` and `crunch push`, made from the notebook.
submission: setup
	$(BIN)/crunch convert notebook.ipynb main.py --overwrite

# RESULTS.md: the benchmarks on real screens, which DATA names (about 8 minutes).
DATA ?= ../shared/data
results: setup
	$(BIN)/python -m workbench.results --data $(DATA)

# Speed and memory against the starter, in one run (about 20 minutes; BENCH=--quick: one).
bench: setup
	$(BIN)/python -m workbench.bench $(BENCH)

lint: challenges
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf build main.py .pytest_cache .mypy_cache .ruff_cache
