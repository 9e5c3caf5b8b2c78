# Two commands do all: `make demo` trains a network, `make test` checks everything.
# `make setup` makes .venv with everything both need; PYTHON names the interpreter it is made from.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := setup.py $(shell find csrc -type f)

.PHONY: demo test emulate faults fuzz tiles lint bench tables gpu gpu-test gpu-bench gpu-deploy gpu-sanitize gpu-rehearse \
	setup clean test-install

demo: setup
	$(BIN)/ran train digits --output runs/demo --overwrite

test: lint
	$(BIN)/python -m pytest --numprocesses=auto --dist=worksteal

# What `make test` leaves out of the CUDA kernels on the CPU: all cases, watched and sanitized, tensors
# beyond 2³¹ elements, and kernels broken on purpose. It takes about an hour.
emulate: setup
	$(BIN)/python -m pytest -m emulate --numprocesses=auto --dist=worksteal

# Every file operation of a training killed, half done or failed; `make test` does a share of it.
faults: setup
	$(BIN)/python -m pytest tests/training/test_faults.py -m faults

# 20,000 random calls of the CPU kernels on any strides, and some under AddressSanitizer and UBSan.
fuzz: setup
	$(BIN)/python -m pytest tests/kernels/test_fuzz.py -m fuzz -s

# Every tile that a matrix product in Triton may take, for three generations of GPUs: none spills.
# `make test` compiles a share; this takes about an hour.
tiles: setup
	$(BIN)/python -m pytest tests/kernels/test_tile_builds.py -m tiles --numprocesses=auto

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# On the machine at hand; RESULT names the file, ARGS narrows (--op CBAM --batch 8 --first-stage).
RESULT ?= bench/results/kernels-$(shell date +%F).json
bench: setup
	$(BIN)/python -m pytest bench/kernels --result=$(RESULT) $(ARGS)

# On a machine with a GPU, into the python at hand, in calls of ten minutes (see tools/gpu.sh):
# `make gpu` prints them and makes the first, `make gpu CALL=2` the second.
CALL ?= 1
gpu:
	tools/gpu.sh
	tools/gpu.sh call $(CALL)
gpu-test:
	tools/gpu.sh build test ceilings
gpu-bench:
	tools/gpu.sh build ceilings kernels networks
gpu-deploy:
	tools/gpu.sh call 5
gpu-sanitize:
	tools/gpu.sh call 6

# All of it without a GPU, against the oldest torch: what will it take there? PARTS narrows
# (environment build suite steps triton); REHEARSAL is the environment, made where there is none.
gpu-rehearse:
	tools/gpu_rehearse.sh $(PARTS)

# The tables in README.md and bench/results/README.md, from the files in bench/results.
tables: setup
	$(BIN)/python -m bench.tables

setup: $(VENV)/built

# torch first: the extension is then built against it, without a second copy in an isolated build.
$(VENV)/torch:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or later is needed")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet 'torch>=2.11' ninja pybind11 'setuptools>=77' wheel
	touch $@

# Without a GPU the CUDA kernels are only compiled, and the two chips of the tests' baseline will do:
# all that setup.py builds for by default take twice as long.
CHIPS := $(shell nvidia-smi --list-gpus >/dev/null 2>&1 || echo '8.0;9.0+PTX')

# Again whenever a source of the extension or a requirement has changed.
$(VENV)/built: $(VENV)/torch pyproject.toml $(SOURCES)
	TORCH_CUDA_ARCH_LIST="$${TORCH_CUDA_ARCH_LIST:-$(CHIPS)}" \
		$(BIN)/python -m pip install --quiet --no-build-isolation --editable '.[dev]'
	touch $@

# An sdist, a wheel, and that wheel in a second environment with the oldest torch. Downloads gigabytes.
test-install: setup
	tools/test_install.sh $(BIN)/python

clean:
	rm -rf $(VENV) build dist *.egg-info ran_kernels/*.so .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
