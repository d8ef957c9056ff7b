# `make help` prints every target with its description.
.DEFAULT_GOAL := help
.PHONY: help install fit test quick check lint types slow docs benchmarks clean

PYTHON ?= python
# What finds most mistakes soonest: imports, recipes, layers, rules, files, and one short fit.
QUICK := tests/core tests/test_floors.py tests/test_init.py tests/test_main.py tests/test_recipes.py \
	tests/networks/test_layers.py tests/data/test_augment.py tests/data/test_batches.py \
	tests/diagnostics/test_rules.py tests/diagnostics/test_moments.py tests/tasks/test_optim.py \
	tests/checkpoints tests/commands/test_list.py tests/test_testing.py

help: ## what there is to run
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

install: ## the project and what its tests need, into the current environment
	$(PYTHON) -m pip install -e '.[test]'

fit: ## the main job: train a ResNet on FashionMNIST
	$(PYTHON) -m zoo fit --recipe resnet_fmnist

test: ## the everyday tests
	$(PYTHON) -m pytest -m "not slow" -n 2

quick: ## two minutes of tests, for the inner loop
	$(PYTHON) -m pytest -m "not slow" -n 2 $(QUICK)

slow: ## the long ones
	$(PYTHON) -m pytest -m slow

lint: ## style
	ruff check .
	ruff format --check .

types: ## types
	mypy

check: lint types test ## what CI runs

docs: ## tables and pages from the code, and the site into site/
	$(PYTHON) docs/generate.py
	mkdocs build --strict

benchmarks: ## side by side with peers; on an idle machine
	for file in tests/benchmarks/*.py; do echo "== $$file"; $(PYTHON) $$file; done

clean: ## caches and builds, never runs
	rm -rf dist site .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
