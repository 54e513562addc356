# Everything runs in .venv, which is made on first use. `make` alone lists the targets.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo up test quick chaos soak fuzz sdk-versions cookbook lint types protos released-protos bench clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml constraints.txt hatch_build.py $(wildcard protos/tinker_proto/*/*.proto protos/tinker_proto/*/*/*.proto)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m tests.http.sdk_versions
	@touch $@

demo: $(STAMP)  ## fine-tune a small model on real text and sample from it, in under 3 minutes
	$(BIN)/python examples/demo.py

MODEL ?= .demo/base-model
up: $(STAMP)  ## run the platform on this machine: make up MODEL=<Hugging Face name, directory, or NAME=DIR>
	$(BIN)/tinker-platform up --base-model "$(MODEL)"

WORKERS ?= 2
test: $(STAMP)  ## run all tests, or those that pytest's ARGS choose: make test ARGS='tests/core -k lease' WORKERS=2
	$(BIN)/pytest --numprocesses $(WORKERS) --dist loadfile $(ARGS)

quick: $(STAMP)  ## run the tests that start no process and are not marked long: logic, and numerics on tiny models
	$(BIN)/pytest --numprocesses $(WORKERS) --dist worksteal -m "not process and not long" $(ARGS)

KILLS ?= 1000
SEED ?= 1
chaos: $(STAMP)  ## kill everything at random moments and compare with an undisturbed run: make chaos KILLS=1000 SEED=1
	$(BIN)/python -m tests.chaos --kills $(KILLS) --seed $(SEED)

MINUTES ?= 60
soak: $(STAMP)  ## run a mixed load and look for growth that nothing needs: make soak MINUTES=60
	$(BIN)/python -m tests.soak --minutes $(MINUTES)

REQUESTS ?= 10000
fuzz: $(STAMP)  ## send hostile bytes to every gRPC method while another tenant trains: make fuzz REQUESTS=10000 SEED=1
	$(BIN)/python -m tests.fuzz --requests $(REQUESTS) --seed $(SEED)

sdk-versions: $(STAMP)  ## run the last of every minor release of the official SDK, from 0.22 to the newest on the index
	SDK_VERSIONS=all $(BIN)/python -m tests.http.sdk_versions
	SDK_VERSIONS=all $(BIN)/pytest tests/http/test_sdk_versions.py

COOKBOOK := $(VENV)/cookbook
$(COOKBOOK)/.installed: tests/cookbook/requirements.txt tests/cookbook/cookbook.txt | $(STAMP)
	$(PYTHON) -m venv $(COOKBOOK)
	$(COOKBOOK)/bin/pip install --quiet --disable-pip-version-check -r $<
	$(COOKBOOK)/bin/pip install --quiet --disable-pip-version-check --no-deps -r tests/cookbook/cookbook.txt
	@touch $@

cookbook: $(STAMP) $(COOKBOOK)/.installed  ## run the official SDK's cookbook, in an environment of its own
	$(BIN)/pytest tests/cookbook

lint: $(STAMP)  ## run every linter: Python, imports, protos, deployment
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	cd protos && ../$(BIN)/buf lint && ../$(BIN)/buf format --diff --exit-code
	$(BIN)/buf breaking protos --against protos/released.binpb
	$(BIN)/docker-compose -f deploy/compose.yaml config --quiet
	$(BIN)/docker-compose -f deploy/compose.yaml --profile gpu config --quiet
	$(BIN)/hadolint deploy/Dockerfile

types: $(STAMP)  ## check the types
	$(BIN)/mypy

protos: $(STAMP)  ## generate the stubs again after a change of protos/
	$(BIN)/python hatch_build.py

released-protos: $(STAMP)  ## record today's contract as the one that must not break
	$(BIN)/buf build protos -o protos/released.binpb

bench: $(STAMP)  ## measure; prints tables of ratios
	$(BIN)/python benchmarks/latency.py
	$(BIN)/python benchmarks/sampler.py
	$(BIN)/python benchmarks/trainer.py --quick
	$(BIN)/python benchmarks/snapshots.py --quick

clean:  ## remove everything that was made
	rm -rf $(VENV) .demo build dist tinker_proto/v1 tinker_proto/internal tinker_proto/sdk .pytest_cache .mypy_cache .ruff_cache
