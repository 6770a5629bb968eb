# Two commands on a fresh machine with python3, pip, venv and make: `make collect` and `make test`. Both may be repeated.
PYTHON  ?= python3
VENV    := .venv
BIN     := $(VENV)/bin
PROTOS  := .venv-protos
NODE    := .venv-buf
JOBS    ?= 2
SEED    ?= 1
KILLS   ?= 200
RUNTIME ?= onnxruntime
# A table in luts/ may be of a like machine set up differently: this machine then starts a version of its own.
COLLECT ?= --device cpu --runtime $(RUNTIME) --new-conditions
# Not compiled by pip: what is imported is compiled then, and most of what is installed never is.
PIP     := -m pip install --quiet --disable-pip-version-check --no-compile

GRPCIO_TOOLS := $(shell sed -n 's/^PIN = "\(.*\)"/\1/p' tools/make_protos.py)
BUF          := 1.75.0
TORCH        := 2.13.0
WITH_litert  := -e '.[litert]'
WITH_torch   := torch==$(TORCH)

.DEFAULT_GOAL := help
unexport PYTHONDONTWRITEBYTECODE # the tests start some hundred processes: each would compile all it imports anew
.PHONY: help setup collect test fuzz soak check check-style check-types check-imports check-protos
.PHONY: ready ready-ray ready-rest bench protos clean

help: ## say what there is
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1: \2/p' Makefile

collect: $(VENV)/.with-$(RUNTIME) ## build a LUT of this machine's CPU and show it: make collect RUNTIME=litert, COLLECT='--budget 1m'
	@lut=$$($(BIN)/lutbuilder collect $(COLLECT)) && $(BIN)/lutbuilder luts show "$$lut"

setup: $(VENV)/.dev ## both distributions, editable, with all runtimes and dev tools

test: $(VENV)/.dev ## all tests
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

fuzz: $(VENV)/.dev ## hostile bytes in full, 100,000 messages, 10,000 tables, 10,000 artifacts: make fuzz SEED=7
	LUTBUILDER_FUZZ=1 LUTBUILDER_FUZZ_SEED=$(SEED) $(BIN)/python -m pytest tests/fuzz $(ARGS)

soak: $(VENV)/.dev ## kill coordinator, agents and workers 200 times at random moments: make soak KILLS=50 SEED=7
	LUTBUILDER_SOAK=$(KILLS) LUTBUILDER_SOAK_SEED=$(SEED) $(BIN)/python -m pytest tests/faults/test_soak.py $(ARGS)

check: check-types check-style check-imports check-protos ## format, lint, strict types, import contracts, protos fresh and linted

check-types: $(VENV)/.dev
	$(BIN)/mypy

check-style: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

check-imports: $(VENV)/.dev
	$(BIN)/lint-imports

check-protos: $(PROTOS)/.ready $(NODE)/.ready
	$(PROTOS)/bin/python tools/make_protos.py --check
	$(NODE)/node_modules/.bin/buf lint

# What the tests would otherwise make on their way, on one core: environments of other packages, and compiled code, which
# each of their workers would make for itself. Where it fails, the tests say why.
ready: ready-ray ready-rest

ready-ray:
	@$(PYTHON) tools/ray_venv.py >/dev/null 2>&1 || true

ready-rest: $(VENV)/.dev
	@$(BIN)/python tools/ofa_venv.py >/dev/null 2>&1 || true
	@$(BIN)/python -m pytest --collect-only -q >/dev/null 2>&1 || true

bench: $(VENV)/.dev ## the figures of the README, measured on this machine; one that cannot be measured is named at the end
	@failed=; for bench in benchmarks/bench_*.py; do echo "== $$bench"; $(BIN)/python "$$bench" || failed="$$failed $$bench"; done; \
	if [ -n "$$failed" ]; then echo "not measured, or failed:$$failed"; exit 1; fi

protos: $(PROTOS)/.ready ## regenerate the wire code from protos/
	$(PROTOS)/bin/python tools/make_protos.py

clean: ## remove everything that was made here, tables excepted
	rm -rf $(VENV) $(PROTOS) $(NODE) .venv-ofa .venv-ray .venv-pymoo build dist *.egg-info agents/*.egg-info agents/build
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(VENV)/.made:
	$(PYTHON) -m venv $(VENV)
	@touch $@

# No torch unless it is the runtime asked for.
$(VENV)/.with-%: pyproject.toml agents/pyproject.toml | $(VENV)/.made
	$(BIN)/python $(PIP) $(WITH_$*) -e 'agents[onnx]' -e .
	@touch $@

# torch first and by its exact version, so that nothing else chooses one.
$(VENV)/.dev: pyproject.toml agents/pyproject.toml | $(VENV)/.made
	$(BIN)/python $(PIP) torch==$(TORCH)
	$(BIN)/python $(PIP) -e 'agents[onnx,litert,torch]' -e '.[dev]'
	@touch $(addprefix $(VENV)/.with-,onnxruntime litert torch) $@

# The oldest grpcio-tools the agent supports: generated code refuses older runtimes, not newer ones. Wheels: Python 3.10-3.12.
$(PROTOS)/.ready: tools/make_protos.py
	$(PYTHON) -m venv $(PROTOS)
	$(PROTOS)/bin/python $(PIP) grpcio-tools==$(GRPCIO_TOOLS)
	@touch $@

$(NODE)/.ready: Makefile
	@command -v npm >/dev/null || { echo "the protos are linted by buf, which npm installs: install Node.js with npm"; exit 1; }
	npm install --silent --no-audit --no-fund --prefix $(NODE) @bufbuild/buf@$(BUF)
	@touch $@
