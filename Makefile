# The two commands: `make demo` (the whole job on demo data, on the files in data/, or on those of DATA=FOLDER) and `make test`.
# CRUNCH=2 after `make demo`, `make bundle` or `make submission` makes it for crunch 2, in crunch-2/: make exports it.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test setup setup-tests challenges say-what bundle submission results bench torture lint clean

demo: setup
	$(BIN)/python -m workbench.demo $(if $(filter command line,$(origin DATA)),--data $(DATA))

test: say-what setup-tests
	$(BIN)/python -m pytest

# Three sets of packages, each installed when it is first needed and again when its file changes. A half-made
# environment has no stamp and is completed.
setup: .venv/.done
setup-tests: challenges .venv/.tests
challenges: .venv/.challenges

# Said before anything is installed.
say-what:
	@test -e .venv/.challenges || echo "Installing first, once: all that the tests and challenges/ need, torch among it" \
	"(200 MB for the processor alone, about 3 GB with CUDA). make demo does without."

.venv/.done: requirements.txt
	$(PYTHON) -m venv .venv
	$(PIP) -r requirements.txt
	touch $@

.venv/.tests: requirements-dev.txt .venv/.done
	$(PIP) -r requirements-dev.txt
	touch $@

.venv/.challenges: requirements-challenges.txt .venv/.done
	$(PIP) -r requirements-challenges.txt
	touch $@

# One notebook that carries its files, for Colab, Kaggle and the platform's one-file upload.
bundle: setup
	$(BIN)/python -m workbench.bundle

# build/submission, the folder to push from; the commands to type next are printed.
submission: setup
	$(BIN)/python -m workbench.submission

# RESULTS.md: the benchmarks on real screens, which DATA names (a quarter of an hour).
DATA ?= ../shared/data
results: challenges
	$(BIN)/python -m workbench.results --data $(DATA)

# Speed and memory against the starter, in one run (about 20 minutes; BENCH=--quick: one).
bench: setup
	$(BIN)/python -m workbench.bench $(BENCH)

# Kills, full disks, little memory and flipped bytes: nothing lost, nothing silent (ten minutes).
torture: challenges
	$(BIN)/python -m workbench.torture

lint: say-what setup-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf build .pytest_cache .mypy_cache .ruff_cache
