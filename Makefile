# SPDX-License-Identifier: GPL-3.0-or-later
# Needs a Debian machine with git, make and Python 3.11 or later, and root or sudo; installs the rest itself.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

RUN := .venv/bin/python tests/gates/run.py

.PHONY: help venv venv-controller system-packages system-packages-lab
.PHONY: test test-fast test-full lint unit component molecule package bench changelog

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 22

venv: .venv/.stamp-test ## .venv with everything pinned in requirements/
	@:
venv-controller: .venv/.stamp-controller
	@:

# The stamps are younger than what they were made from; a satisfied set costs nothing.
.venv/.stamp-controller: requirements/controller.txt requirements/uv.txt requirements/venv
	@echo "installing requirements/controller.txt into .venv"
	@requirements/venv controller
	@touch $@

.venv/.stamp-test: requirements/test.txt requirements/controller.txt requirements/uv.txt requirements/venv
	@echo "installing requirements/test.txt into .venv"
	@requirements/venv test
	@touch $@ .venv/.stamp-controller

system-packages: ## Debian packages that the lab and the tests need (nothing is started)
	@requirements/system lab test
system-packages-lab:
	@requirements/system lab

test: venv system-packages ## everything CI runs: gates, unit, component, molecule
	@$(RUN) all

test-fast: venv system-packages ## lint, unit and component tests: under two minutes
	@$(RUN) fast

test-full: venv system-packages ## every fault, every repetition, both Debian releases
	@$(RUN) full

lint: venv ## ansible-lint, yamllint, ruff, mypy, documentation, changelog, playbook syntax
	@$(RUN) lint

package: venv ## the built collection: galaxy-importer, installed alone, and a plain clone
	@$(RUN) package

unit: venv system-packages ## pure decisions and rendered templates
	@$(RUN) unit

component: venv system-packages ## modules against real daemons
	@$(RUN) component

molecule: venv system-packages ## the scenarios, one after the other; SCENARIO=redis runs one
	@$(RUN) molecule$(if $(SCENARIO),:$(SCENARIO))

bench: venv system-packages ## the measurements, printed as ratios
	@.venv/bin/python tests/bench/bench.py

changelog: venv ## CHANGELOG.rst from the fragments; VERSION=x.y.z makes a release of them
	@.venv/bin/antsibull-changelog $(if $(VERSION),release --version $(VERSION),generate)

# demo, clean and what else is the lab's
-include lab/lab.mk
