# `make help` prints every target with the words beside it.
.DEFAULT_GOAL := help
.PHONY: help install fit test check lint types slow benchmarks clean

PYTHON ?= python

help: ## what there is to run
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

install: ## the project and what its tests need, into the current environment
	$(PYTHON) -m pip install -e '.[test]'

fit: ## the main job: train a ResNet on FashionMNIST
	$(PYTHON) -m zoo fit --recipe resnet_fmnist

test: ## the everyday tests
	$(PYTHON) -m pytest -m "not slow" -n 2

slow: ## the long ones
	$(PYTHON) -m pytest -m slow

lint: ## style
	ruff check .
	ruff format --check .

types: ## types
	mypy

check: lint types test ## what CI runs

benchmarks: ## side by side with peers; on an idle machine
	for file in tests/benchmarks/*.py; do echo "== $$file"; $(PYTHON) $$file; done

clean: ## caches and builds, never runs
	rm -rf dist .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
