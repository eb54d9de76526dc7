# Everything runs in .venv, which `make setup` makes and every other target uses; for NVIDIA GPUs: `make setup GPU=1`.
# Python 3.11 or newer, git and make are all a machine needs. Another Python: make PYTHON=python3.12 demo

# Settings of a team's services, where there are any: `make services-up` writes them.
ifneq ($(wildcard .env),)
include .env
export $(shell sed -n 's/^\([A-Z][A-Z0-9_]*\)=.*/\1/p' .env)
endif

PYTHON ?= python3
UV_VERSION := 0.13.8
BIN := .venv/bin
# Tests run in so many processes, each of which imports TensorFlow; the longer ones in one more, since they wait for
# servers and disks.
JOBS ?= 2
MORE_JOBS = $(shell expr $(JOBS) + 1)
# One home for Dagster's state, the asset store and MLflow: this folder, unless you set another.
export DAGSTER_HOME ?= $(CURDIR)
export TF_CPP_MIN_LOG_LEVEL ?= 2
UI_PORT ?= $(or $(DIOPTRA_ASSETS_UI_PORT),3000)
MLFLOW_PORT ?= 5000
# Byte code is compiled once at installation: it halves the time of every import of TensorFlow.
export UV_COMPILE_BYTECODE := 1

.PHONY: setup demo ui mlflow worker services-up services-down services-restart test test-quick test-all dagster-newest coverage lint format docs bench lock pictures release-check clean

setup: .venv/.installed $(if $(GPU),.venv/.gpu)

.venv/.gpu: .venv/.installed
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-build-isolation --constraint requirements.lock -e '.[gpu]'
	@touch $@

.venv/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else "Python 3.11, 3.12 or 3.13 is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 setup")'
	@echo 'Setting up .venv, once: the packages of requirements.lock, 5 GB on disk; a minute or two on a fast line'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	@echo "$$(grep -c '^[A-Za-z0-9._-]*==' requirements.lock) packages are fetched, checked against their hashes and installed"
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation -e .
	@touch $@

demo: setup  ## Train, attack, evaluate and report on handwritten digits.
	$(BIN)/dioptra-assets demo

ui: setup  ## Open Dagster on http://127.0.0.1:3000. Another port: make ui UI_PORT=3001
	@$(BIN)/python -m dioptra_assets.web.server -p $(UI_PORT)

mlflow: setup  ## Open MLflow on http://127.0.0.1:5000: runs, metrics, registered models. Another port: MLFLOW_PORT=5001
	MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false $(BIN)/mlflow server \
		--app-name dioptra_assets --host 127.0.0.1 --port $(MLFLOW_PORT) --workers 1 \
		--allowed-hosts 127.0.0.1:$(MLFLOW_PORT),localhost:$(MLFLOW_PORT) --backend-store-uri sqlite:///$(DAGSTER_HOME)/mlflow/mlflow.db \
		--artifacts-destination $(DAGSTER_HOME)/mlflow/artifacts

worker: setup  ## Start Celery workers for steps on a GPU and all others: one a GPU.
	$(BIN)/dioptra-assets worker --gpus all

services-up: setup  ## Start Postgres, S3, Redis, MLflow and the platform on them; settings go to .env.
	$(BIN)/python -m services up

services-down: setup  ## Stop them, and wait until they are gone; data and settings stay.
	$(BIN)/python -m services down

services-restart: setup  ## Stop them and start them again.
	$(BIN)/python -m services restart

test-quick: setup  ## Within a minute on two cores: what needs no training, no Dagster run, no server and no browser.
	$(BIN)/pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "quick and not heavy and not slow" $$(grep -rl --include='test_*.py' 'pytest.mark.quick' tests)

test: setup  ## The fast tests, within eight minutes on two cores.
	$(BIN)/pytest -n $(MORE_JOBS) --dist loadfile --no-loadscope-reorder -m "not slow"

test-all: setup  ## Every test, slow proofs too.
	$(BIN)/pytest -n $(MORE_JOBS) --dist loadfile --no-loadscope-reorder

coverage: setup  ## The quick tests, and the share of lines they reach; the floor is in pyproject.toml.
	$(BIN)/pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "quick and not heavy and not slow" \
		--cov --cov-report=term:skip-covered $$(grep -rl --include='test_*.py' 'pytest.mark.quick' tests)

dagster-newest: setup  ## What of Dagster's internals the newest release no longer has.
	$(BIN)/uv run --quiet --isolated --no-project --with dagster --with dagster-celery python tests/dagster_canary.py

lint: setup  ## Style, spelling, types, dependencies declared as used, and the experiment files.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/deptry dioptra_assets partitions resources
	$(BIN)/deptry tests benchmarks docs services --exclude '\.venv' --ignore DEP002,DEP004
	$(BIN)/pyright
	$(BIN)/dg check defs

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: setup  ## Build the documentation as a site, offline, with strict links: open site/index.html.
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

pictures: setup  ## Take the pictures of the documentation anew, after `make demo`.
	$(BIN)/python -m docs.pictures

bench: setup  ## Speed and memory against ART, as ratios.
	$(BIN)/python -m benchmarks

lock: setup  ## Write requirements.lock anew: versions and hashes, no address.
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
		--no-header --no-annotate --no-emit-index-url --upgrade --quiet -o requirements.lock

release-check: setup  ## Build the wheel, look into it, install it in an empty environment and try it there.
	@.ci/release-check

clean:  ## Remove the environment and everything this folder holds as a home: stored assets, MLflow, Dagster's state.
	rm -rf .venv .services .env site dist store mlflow reports storage history schedules logs .logs_queue .nux .telemetry
