# make run    real models before and after, on what this machine has
# make test   everything that CI checks
#
# Both make the environment .venv first. PYTHON=python3.12 makes it from another interpreter. ENV=/path/to/python uses an
# environment that is already there, with its own torch, and installs nothing: it also works offline.

# make test WORKERS= runs the tests in one process.

PYTHON ?= python3
TORCH ?= 2.13.0
ENV ?=
WORKERS ?= -n logical --dist worksteal

ifeq ($(ENV),)
PY := .venv/bin/python
READY := .venv/ready
else
PY := $(ENV)
READY :=
endif

CSRC := $(wildcard csrc/*.cpp csrc/*.h csrc/*/*.cpp csrc/*/*.h csrc/*/*.cu csrc/*/*.cuh)
export PYTHONPATH := $(CURDIR)

.PHONY: run test build lint format bench gpu clean

run: build
	$(PY) -m sod_ops accelerate $(or $(MODELS),timm:seresnet50 timm:efficientnet_b0 timm:mobilenetv3_large_100 torchvision:regnet_y_400mf)

# Threads that wait sleep: the cores have other workers' tests to run.
test: build
	OMP_WAIT_POLICY=passive $(PY) -m pytest $(WORKERS) $(ARGS)

bench: build
	$(PY) -m pytest benchmarks $(ARGS)
	$(PY) -m benchmarks.report --readme README.md

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(dir $(PY))clang-format --dry-run -Werror $(CSRC)

format: $(READY)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .
	$(dir $(PY))clang-format -i $(CSRC)

build: $(READY)
	$(PY) setup.py -q build_ext --inplace

# On a machine with an NVIDIA GPU, offline, with the torch that is there: python3, or ENV=/path/to/python.
gpu:
	scripts/gpu $(or $(ENV),$(PYTHON))

.venv/ready: requirements/dev.txt requirements/peers.txt
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install -q --upgrade pip
	.venv/bin/python -m pip install -q torch==$(TORCH)
	.venv/bin/python -m pip install -q -r requirements/dev.txt
	.venv/bin/python -m pip install -q --no-deps -r requirements/peers.txt
	touch $@

clean:
	rm -rf build .venv out sod_ops/*.so
