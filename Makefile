PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-fast test-cluster lint format bench audit sbom clean
.DEFAULT_GOAL := help

help:
	@echo "make demo    the whole system on a small synthetic catalogue, on this machine"
	@echo "make test    all tests        make lint    ruff and mypy"
	@echo "make test-cluster    real Ray for minutes: nodes that come and go, jobs, shared GPUs, final runs"
	@echo "make bench   all benchmarks (quick)        make clean"
	@echo "make audit   known vulnerabilities of what requirements.lock pins        make sbom   sbom.cdx.json"

# The lock pins everything; the package itself is installed without looking for anything more.
$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("darec-search needs Python 3.11 or newer; run make PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/darec-search run examples/demo.yaml

test: $(VENV)/.installed
	$(BIN)/python -m pytest

test-fast: $(VENV)/.installed
	$(BIN)/python -m pytest -m "not slow and not cluster"

test-cluster: $(VENV)/.installed
	$(BIN)/python -m pytest -n 0 -m cluster

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed
	@set -e; for script in benchmarks/*.py; do $(BIN)/python $$script --quick; done

# The tools that look at the environment stay out of it.
AUDIT := $(VENV)-audit/bin
$(VENV)-audit/.installed:
	$(PYTHON) -m venv $(VENV)-audit
	$(AUDIT)/python -m pip install --quiet --disable-pip-version-check pip-audit==2.10.1 cyclonedx-bom==7.5.0
	@touch $@

# Exit code 1 for a vulnerability, 2 where the service that knows them cannot be reached.
audit: $(VENV)-audit/.installed
	@PATH=$(AUDIT):$$PATH .ci/audit requirements.lock

sbom: $(VENV)-audit/.installed
	@$(AUDIT)/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible --of JSON \
	  --output-file sbom.cdx.json requirements.lock
	@echo "sbom.cdx.json written"

clean:
	rm -rf $(VENV) $(VENV)-audit sbom.cdx.json build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage
