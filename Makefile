# make serve · make test · make lint · make bench · make docs
PYTHON ?= python3
# make serve DEVICE=cuda: on a GPU, from an environment of its own.
DEVICE ?= cpu
ifeq ($(filter cpu cuda,$(DEVICE)),)
$(error DEVICE is cpu or cuda, not $(DEVICE))
endif
ifeq ($(DEVICE),cuda)
VENV   ?= .venv-cuda
EXTRA  := gpu
export MEXMA_DEVICE := cuda
else
VENV   ?= .venv
EXTRA  := cpu
endif
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check

# make serve PORT=9000 sets the port for this run; MEXMA_* in the environment pass through.
ifdef PORT
export MEXMA_PORT := $(PORT)
endif

# An installation without a compiler goes on without our own engines. Where there is one now, it is made up for.
engine: $(VENV)/.serve
	@ls mexma/native/_engine*.so mexma/cuda/_engine*.so >/dev/null 2>&1 || ! command -v g++ >/dev/null || $(PIP) install -q --no-deps -c constraints.txt -e .

.PHONY: help engine serve dev test lint fuzz sanitize bench docs browser compiler tools sbom audit image clean

help: ## what there is
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 10

serve: $(VENV)/.serve engine ## install what serving needs, once, and serve the default model (PORT=9000, DEVICE=cuda)
	@exec $(BIN)/mexma-serve

test: compiler lint browser tools ## install what tests need, once; lint, types, floors, docs and all tests
	$(BIN)/python -m pytest $(PYTEST)

dev: $(VENV)/.dev ## install what exporting, training and tests need (torch among it), once

lint: $(VENV)/.dev ## ruff, mypy, the floors between rooms
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fuzz: $(VENV)/.dev ## feed every reader of bytes from outside for MINUTES (30)
	$(BIN)/python -m tests.fuzz --minutes $(or $(MINUTES),30)

sanitize: compiler $(VENV)/.dev ## attack the native engine in sanitizers' builds for SECONDS (60)
	$(BIN)/python -m tests.sanitize --seconds $(or $(SECONDS),60)

bench: $(VENV)/.dev ## what of the engine reaches the clients
	$(BIN)/python -m benchmarks.served

docs: $(VENV)/.dev ## write the reference pages anew from the code
	$(BIN)/python -m docs.reference
	$(BIN)/python -m deploy.dashboard

# The page is tested in a real browser. Debian's is installed where there is none.
browser: $(VENV)/.dev ## install Chromium where there is none
	@$(BIN)/python -m tests.browser || { \
	  [ "$$(id -u)" = 0 ] || SUDO=sudo; \
	  $$SUDO apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive $$SUDO apt-get install -qq -y --no-install-recommends chromium >/dev/null && \
	  $(BIN)/python -m tests.browser; }

# First of what tests need: the native engine is compiled where it is installed, and a test
# watches a process's disk with a library of its own.
compiler: ## install a C++ compiler where there is none
	@command -v g++ >/dev/null || { \
	  [ "$$(id -u)" = 0 ] || SUDO=sudo; \
	  $$SUDO apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive $$SUDO apt-get install -qq -y --no-install-recommends g++ libc6-dev python3-dev >/dev/null; }

tools: $(VENV)/.dev ## install helm and prometheus where they are missing
	@$(BIN)/python -m tests.deploy.tools

sbom: $(VENV)/.dev ## write what is served, with versions, licences and hashes, to build/sbom.json
	$(BIN)/python -m deploy.sbom build/sbom.json

# Where the source of advisories does not answer, or knows nothing, it says so and fails with 2.
# ADVISORIES=DIR asks a clone of PyPA's advisory database instead of the package index.
audit: $(VENV)/.dev ## look what is served up among known vulnerabilities (needs the network, or ADVISORIES)
	$(if $(ADVISORIES),,$(PIP) install -q -c constraints.txt 'pip-audit>=2.9')
	@$(BIN)/python -m deploy.audit $(if $(ADVISORIES),--advisories $(ADVISORIES))

image: $(BIN)/python ## build the Dockerfile and run the service in it, without a container engine (root, Debian)
	@for tool in buildah debootstrap; do command -v $$tool >/dev/null || \
	  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $$tool >/dev/null; done
	$(BIN)/python deploy/try_image.py --work build/image

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Python 3.11 or newer is needed, this is {sys.version}")'
	$(PYTHON) -m venv $(VENV)

# What our own engines are compiled from; an installation compiles them.
NATIVE := $(wildcard mexma/native/*.cpp mexma/native/*.hpp mexma/cuda/*.cpp mexma/cuda/*.hpp)

$(VENV)/.serve: pyproject.toml constraints.txt $(NATIVE) | $(BIN)/python
	$(PIP) install -q -c constraints.txt -e '.[$(EXTRA)]'
	@touch $@

# --group needs pip 25.1. The extra export brings torch.
$(VENV)/.dev: pyproject.toml constraints.txt $(NATIVE) | $(BIN)/python
	$(PIP) install -q -U 'pip>=25.1'
	$(PIP) install -q -c constraints.txt -e '.[$(EXTRA),otel,export,evaluate,milvus]' --group dev
	@touch $@ $(VENV)/.serve

clean: ## remove what was installed and cached; collections stay
	rm -rf .venv .venv-cuda $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
