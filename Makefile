# `make help` lists what there is.
.DEFAULT_GOAL := help
.PHONY: help run test lint bench chaos lock clean
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

bench: .venv/.test  ## measure, and write docs/performance.md: some ten minutes; BENCH_ARGS=--quick: two
	@.venv/bin/python -m bench $(BENCH_ARGS)

chaos: .venv/.test  ## break what can break, at random; CHAOS_ARGS="--seconds 3600 --seed 1 --store redis"
	@.venv/bin/python -m tests.chaos $(CHAOS_ARGS)

# For every Python and system that the server runs on, with the hashes of all files of a release.
LOCK = .venv/bin/uv pip compile -q --no-config --universal --python-version 3.11 --generate-hashes \
	--annotation-style line --custom-compile-command "make lock" $(LOCK_ARGS)

lock: .venv/.test  ## pin what requirements*.in ask for; LOCK_ARGS=-U: all that these bring along anew
	@$(LOCK) requirements-dev.in -o requirements-dev.txt
	@$(LOCK) requirements.in -c requirements-dev.txt -o requirements.txt
	@$(LOCK) sandbox/requirements.in -c requirements-dev.txt -o sandbox/requirements.txt

clean:  ## remove what the other commands have made
	rm -rf .venv var tests/npm/node_modules .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info

.venv/.run: requirements.txt sandbox/requirements.txt
	@.ci/setup requirements.txt
	@.ci/setup sandbox/requirements.txt
	@touch $@

.venv/.test: requirements-dev.txt requirements.txt sandbox/requirements.txt tests/npm/package-lock.json
	@.ci/setup requirements-dev.txt chromium=chromium redis-server=redis-server nginx=nginx-light curl=curl npm=npm strace=strace cc=build-essential
	@npm ci --prefix tests/npm --silent --no-audit --no-fund
	@touch $@ .venv/.run
