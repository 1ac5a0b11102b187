# `make help` lists what there is.
.DEFAULT_GOAL := help
.PHONY: help run test lint bench clean
PYTEST_ARGS ?= -n 4

help:  ## list the commands
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' Makefile

run: .venv/.run  ## serve; without OAuth settings, with the sandbox in place of Genesys Cloud
	@exec .venv/bin/python -m server.cli run

test: .venv/.test lint  ## check style and types, run all tests
	@.venv/bin/python -m pytest -q $(PYTEST_ARGS)

lint: .venv/.test  ## check style (ruff) and types (mypy, strict)
	@.venv/bin/ruff check -q
	@.venv/bin/ruff format -q --check
	@.venv/bin/mypy

bench: .venv/.test  ## measure: the figures that the README claims
	@.venv/bin/python -m bench
	@echo
	@.venv/bin/python -m bench.stores
	@echo
	@.venv/bin/python -m bench.transcript

clean:  ## remove what the other commands have made
	rm -rf .venv var .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info

.venv/.run: requirements.txt sandbox/requirements.txt
	@.ci/setup requirements.txt
	@.ci/setup sandbox/requirements.txt
	@touch $@

.venv/.test: requirements-dev.txt requirements.txt sandbox/requirements.txt
	@.ci/setup requirements-dev.txt chromium=chromium redis-server=redis-server nginx=nginx-light
	@touch $@ .venv/.run
