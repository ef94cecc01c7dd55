# make, or make help, lists the commands. Those that need one create an environment of their own in
# .venv, from requirements*.txt and constraints/tested.txt.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints/tested.txt

.PHONY: help demo app test lint bench clean

help:  ## list these commands
	@sed -n 's/^\([a-z]*\):.*## /  make \1 - /p' Makefile

demo: $(VENV)/.ready  ## fine-tune the det-logo on the bundled model, without a GPU or a token
	$(BIN)/python -m detsd finetune finetune_demo.yaml

app: $(VENV)/.ready-app  ## open the demo page in a browser
	$(BIN)/python -m detsd app

test: $(VENV)/.ready-dev  ## run all tests, on two CPU cores
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(VENV)/.ready-dev  ## check rules and format with ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(VENV)/.ready  ## measure the speed of this machine
	$(BIN)/python -m benchmarks --write

clean:  ## remove the environment; outputs/ stays, since nothing could restore what was trained
	rm -rf $(VENV)

# torch comes first, at its exact version: with a version range, pip would download gigabytes of GPU
# libraries to a machine that already has a CPU build of that version.
$(VENV)/.ready: requirements.txt constraints/tested.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) $$(grep '^torch==' constraints/tested.txt)
	$(PIP) -r requirements.txt
	touch $@

$(VENV)/.ready-app: requirements-app.txt $(VENV)/.ready
	$(PIP) -r requirements-app.txt
	touch $@

$(VENV)/.ready-dev: requirements-dev.txt $(VENV)/.ready-app
	$(PIP) -r requirements-dev.txt
	touch $@
