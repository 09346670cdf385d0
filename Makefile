# `make quickstart` goes from a fresh clone to a report; `make test` runs the tests. Both make .venv first.

# Candidates, in order; give one with `make setup PYTHON=/path/to/python3.11`.
PYTHON = python3.11 python3 python

PIP = .venv/bin/python -m pip -q --disable-pip-version-check install
IS_311 = -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'
# Test files side by side, one for each core, each with one thread: the tests' networks are too small for more.
PYTEST = OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n logical --maxprocesses 8 --dist loadfile
TORCH = $(shell grep '^torch==' requirements.lock)
# Anew whenever a pin, the package itself or its place changes, and only then.
STAMP := .venv/installed-$(shell { pwd; cat requirements.lock pyproject.toml; } | cksum | tr ' ' '-')

.PHONY: help setup quickstart collect test test-fast test-slow lint

help:
	@echo "make setup       make .venv with the whole pinned set (about 2 minutes)"
	@echo "make quickstart  train TD-MPC2 and SAC on a task of each domain and write a report (about 10 minutes on 2 cores)"
	@echo "make collect     the quickstart's tables alone"
	@echo "make test        the tests: all but the slow ones (about 15 minutes on 2 cores)"
	@echo "make test-fast   the fast ones of them (under 2 minutes)"
	@echo "make test-slow   the slow tests: minutes of real training"
	@echo "make lint        ruff, its formatter and mypy"

setup: $(STAMP)

$(STAMP):
	@if ! { .venv/bin/python $(IS_311) && .venv/bin/python -c 'import pip'; } 2>/dev/null; then \
		for candidate in $(PYTHON); do \
			if "$$candidate" $(IS_311) 2>/dev/null; then found="$$candidate"; break; fi; \
		done; \
		if [ -z "$$found" ]; then \
			echo "error: no Python 3.11 found (looked for: $(PYTHON)); install it (Debian 12: apt-get install" \
				"python3.11 python3.11-venv), or name it: make setup PYTHON=/path/to/python3.11" >&2; \
			exit 1; \
		fi; \
		echo "[1/4] .venv with $$("$$found" --version)"; \
		"$$found" -m venv --clear .venv; \
	fi
	@echo "[2/4] $(TORCH) (about half a minute; with its CUDA packages 3 GB, which takes longer)"
	@$(PIP) $(TORCH)
	@echo "[3/4] $$(grep -c == requirements.lock) pinned packages: simulators, analysis, tools (about a minute)"
	@$(PIP) --no-deps -r requirements.lock
	@echo "[4/4] the suite itself"
	@$(PIP) --no-deps --no-build-isolation -e .
	@rm -f .venv/installed-*
	@touch $(STAMP)
	@echo "ready: .venv/bin/bench doctor says what works on this machine"

quickstart: setup
	@echo ".venv/bin/bench sweep launch sweeps/quickstart.yaml --wait"; \
	.venv/bin/bench sweep launch sweeps/quickstart.yaml --wait; launched=$$?; \
	.venv/bin/bench report results/quickstart -o results/quickstart/report.html && exit $$launched

collect: setup
	.venv/bin/bench collect results/quickstart

test: setup
	$(PYTEST)

test-fast: setup
	$(PYTEST) -m "not slow and not gpu and not whole"

test-slow: setup
	.venv/bin/python -m pytest -m slow

lint: setup
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m mypy
