# make demo | make app | make test | make lint | make bench | make clean
# Each creates its own environment in .venv, from requirements*.txt and constraints/tested.txt.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints/tested.txt

.PHONY: demo app test lint bench clean

demo: $(VENV)/.ready  ## fine-tune det-logo on the bundled model, no GPU, no token
	$(BIN)/python -m detsd finetune finetune_demo.yaml

app: $(VENV)/.ready-app  ## the interactive demo, in a browser
	$(BIN)/python -m detsd app

test: $(VENV)/.ready-dev  ## run all tests, on two CPU cores
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

bench: $(VENV)/.ready
	$(BIN)/python -m benchmarks --write

clean:
	rm -rf $(VENV) outputs

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
