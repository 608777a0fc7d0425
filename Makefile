# Everything is installed into .venv by the first target that needs it; the stamps
# .venv/.dev and .venv/.bench make a second call do nothing.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
# Tests and examples are many small tensors: there, a second thread only gets in the way.
ONE_THREAD := OMP_NUM_THREADS=1 MPLBACKEND=Agg
# One process per core, 8 at most.
PYTEST := $(ONE_THREAD) $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

.PHONY: help demo test lint format docs bench peers laws audit clean

help: ## Show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1 \t/' | expand -t 16

demo: .venv/.dev ## Train on handwritten digits and draw the picture (two minutes)
	@$(ONE_THREAD) $(BIN)/python examples/quickstart.py

test: .venv/.dev ## Run all tests, and the examples in docstrings and pages
	@$(PYTEST)

lint: .venv/.dev ## Check style, types, layers and spelling
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/basedpyright
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/codespell

format: .venv/.dev ## Format the code and fix what can be fixed without thought
	@$(BIN)/ruff format
	@$(BIN)/ruff check --fix

docs: .venv/.dev ## Build the site, examples included; warnings are errors
	@$(ONE_THREAD) TQDM_DISABLE=1 $(BIN)/sphinx-build -W --keep-going -q docs docs/_build/html
	@echo "The site is docs/_build/html/index.html"

bench: .venv/.bench ## Compare with torch.optim, optax, optimistix, geotorch, opacus and others
	@$(BIN)/python -m benchmarks.run

peers: .venv/.bench ## Compare curvature and norms per sample with curvlinops, BackPACK and opacus
	@$(PYTEST) tests/derivatives/test_curvlinops.py tests/derivatives/test_per_sample_peers.py

laws: .venv/.dev ## Run each law with 500 drawn cases in place of 20
	@$(PYTEST) tests/laws -m "not compile" --hypothesis-profile=laws

audit: .venv/.dev ## Compare the derivatives of torch's own operations with differences
	@$(ONE_THREAD) $(BIN)/python -m tests.audit.sweep

clean: ## Remove what the targets made, .venv included
	rm -rf .venv build dist docs/_build docs/gallery docs/sg_execution_times.rst
	rm -rf .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests examples benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.dev: requirements-dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "pureopt needs Python 3.11 or later, this is %d.%d: make PYTHON=/path/to/python" % v[:2])'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing into .venv (the first time takes minutes) ..."
	@$(PIP) install -r requirements-dev.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

.venv/.bench: .venv/.dev requirements-bench.txt
	@echo "Installing the peers to compare with ..."
	@$(PIP) install -r requirements-dev.txt -r requirements-bench.txt
	@touch $@
