# Every target sets up what it needs first (tools/setup.sh: .venv, packages, headless rendering).
# ARGS="..." is passed on: make train ARGS="--task metaworld_drawer_open", make test ARGS="-x".

.DEFAULT_GOAL := help
.PHONY: help setup train test test-slow table lint audit clean

# What a user's shell may hold and these commands must not see: other packages, another backend.
unexport PYTHONPATH PYTHONHOME PYTHONSAFEPATH TF_USE_LEGACY_KERAS
export KERAS_BACKEND := tensorflow

python := .venv/bin/python

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 20

setup: ## only the set-up
	@bash tools/setup.sh

train: setup ## the small main job, from data to a SavedModel (two cores, 30 min)
	@$(python) train.py --configs metaworld veorl small $(ARGS)

test: setup ## the tests that are quick
	@$(python) -m pytest -q -m "not slow" $(ARGS)

test-slow: setup ## the tests that take long
	@$(python) -m pytest -q -m slow $(ARGS)

table: setup ## the README's table, measured again where it is missing (hours)
	@$(python) -m veorl_tf table $(ARGS)

lint: ## what .ci/run asks of the style
	@bash tools/setup.sh --dev
	@$(python) -m ruff check --output-format concise .
	@$(python) -m ruff format --check --quiet .

audit: ## known vulnerabilities of the locked packages (wants the network)
	@bash tools/setup.sh --dev
	@.venv/bin/uv tool run pip-audit@2.10.1 --strict --disable-pip --require-hashes --progress-spinner off \
		-r locks/requirements-dev.txt

clean: ## remove .venv and caches; runs under logs/ and data stay
	rm -rf .venv .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
