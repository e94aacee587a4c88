# sandboxd: `make` lists what there is. Everything works as root and as a user with sudo, on Debian 12 and Ubuntu 24.04.
PREFIX ?= /opt/sandboxd
TEST_PREFIX ?= /opt/sandboxd-tests
PYTEST_ARGS ?=
BENCH ?=
FUZZ_SECONDS ?= 300

SHELL := /bin/bash
.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test lint fuzz bench vm-test install uninstall lock clean bootstrap test-install

help: ## this list
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

demo: install ## start the whole service, run hostile and honest programs through it, show what came back, stop
	@scripts/as-root $(PREFIX)/bin/python demo/demo.py

test: test-install ## install everything that is needed and run the tests
	@scripts/as-root scripts/test.sh $(TEST_PREFIX) $(PYTEST_ARGS)

lint: test-install ## ruff, mypy and the C compiler's warnings, as `make test` runs them too
	@scripts/as-root scripts/test.sh $(TEST_PREFIX) tests/test_style.py tests/test_architecture.py

fuzz: test-install ## fuzz every border for FUZZ_SECONDS each (default 300): API, launcher, init's lists and reports, policies, profiles
	@FUZZ_SECONDS=$(FUZZ_SECONDS) scripts/as-root scripts/test.sh $(TEST_PREFIX) tests/fuzz tests/api/test_fuzz.py tests/kernel/test_hostile_init.py

bench: test-install ## `sandboxd bench`: ratios of one run, and charts (BENCH=cold: one question, BENCH=--list: their names)
	@scripts/as-root $(TEST_PREFIX)/bin/sandboxd bench $(BENCH)

vm-test: ## smoke tests on pure cgroup v2 in a virtual machine (no KVM needed; builds its image once)
	@tests/vm/run.sh

install: bootstrap ## install to PREFIX (default /opt/sandboxd) with a link in /usr/local/bin
	@scripts/as-root scripts/install.sh $(PREFIX) runtime
	@scripts/as-root scripts/link.sh $(PREFIX)

uninstall: ## remove PREFIX and the link; `make uninstall PURGE=--purge` removes tokens, kept jobs and the system user too
	@scripts/as-root scripts/uninstall.sh $(PREFIX) $(PURGE)

lock: ## rewrite requirements/*.lock from pyproject.toml (UPGRADE=--upgrade takes newer versions)
	@scripts/lock.sh $(UPGRADE)

clean: ## remove what builds and tests left in the checkout
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

bootstrap:
	@scripts/as-root scripts/bootstrap.sh

test-install:
	@scripts/as-root scripts/bootstrap.sh test
	@scripts/as-root scripts/install.sh $(TEST_PREFIX) test
