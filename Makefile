# Each target sets up what it needs and then runs; a second call sets nothing up again.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
# Tests trace and compile more than they compute: one worker a core.
PYTEST := -m pytest -n 2 --dist loadgroup

export TF_CPP_MIN_LOG_LEVEL ?= 2
export PIP_DISABLE_PIP_VERSION_CHECK ?= 1
# Python compiles what is imported; of 20,000 modules installed that is a fifth. It keeps what it compiled, also where the
# environment forbids it: else each process compiles TensorFlow anew, for 8 s.
export PIP_COMPILE ?= 0
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help train test check format bench gpu build clean test-slow test-parity test-jax test-real test-browser \
	test-keras-cv

help:
	@echo "make train          train a network on real digits (DATA=folder/ for your own images)"
	@echo "make test           the tests that prove your machine: correctness, errors, saving, one fit a family"
	@echo "make test-slow      the others: XLA and 16 bits for every network, long runs, the examples"
	@echo "make check          lint, format and the tests that your change can break"
	@echo "make format         let ruff mend what it can"
	@echo "make build          wheel and sdist into dist/"
	@echo "make bench          kvision beside its peers, in 15 minutes (ALL=1 every row, ONLY=name one); writes benchmarks/RESULTS.md"
	@echo "make gpu            steps beside torchvision, 16-bit training and numeric tests on your card, in 8 minutes"
	@echo "make test-parity | test-jax | test-real | test-browser | test-keras-cv    the marked tests, each in its own environment"

train: $(VENV)/.examples
	$(BIN)/python examples/$(if $(DATA),train_folder.py $(DATA),train_digits.py) $(ARGS)

test: $(VENV)/.test
	$(BIN)/python $(PYTEST) --durations=15 $(ARGS)

test-slow: $(VENV)/.test
	$(BIN)/python $(PYTEST) --durations=15 -m "$(SLOW)" $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tools/touched_tests.py --run $(BIN)/python

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

build: $(VENV)/.dev
	rm -rf build dist
	$(BIN)/python -m build --outdir dist .

test-parity: .venv-parity/.parity
	.venv-parity/bin/python $(PYTEST) -m parity --durations=5 $(ARGS)

SLOW := slow and not (parity or jax or real or browser or keras_cv or gpu)

# What touches tensors: the page, W&B, tables of NumPy and the files of weights know no backend.
ON_JAX := tests/ops tests/layers tests/losses tests/optimizers tests/detection tests/metrics/test_exposure_count.py \
	tests/metrics/test_mean_iou.py tests/callbacks/test_segmentation_images.py \
	tests/callbacks/vitals tests/callbacks/test_exposure.py tests/callbacks/test_learning_rate.py \
	tests/callbacks/test_plateau.py tests/callbacks/test_detection_metrics.py tests/callbacks/test_model_state.py \
	tests/callbacks/test_resume.py tests/callbacks/test_resume_faults.py tests/callbacks/test_rollback.py tests/training \
	tests/trackers/test_clock.py tests/trackers/test_pace.py tests/trackers/test_tracker.py tests/weights/test_loading.py \
	tests/test_network.py tests/test_task_model.py tests/test_contract.py tests/visualize tests/benchmarks \
	tests/test_without_tensorflow.py

# Of the networks, what runs a whole one: JAX compiles each operation that is called outside a compiled step. Of the
# detectors, one of each kind.
NETWORKS_ON_JAX := (one_step_of_fit or few_steps_of_fit or save_and_load or fresh_process) \
	and not (fast_rcnn or faster_rcnn or cascade or mnc or fcn_resnet)
NOT_ON_JAX := not (parity or real or browser or gpu or tensorflow_only or slow)

# Each operation is compiled once: the two workers, the processes they start and the next run share a folder.
test-jax: export JAX_COMPILATION_CACHE_DIR := $(CURDIR)/.venv-jax/compiled
test-jax: export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS := 0
test-jax: export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES := -1
test-jax: .venv-jax/.jax
	KERAS_BACKEND=jax .venv-jax/bin/python $(PYTEST) --durations=5 $(ARGS) -m "$(NOT_ON_JAX)" $(ON_JAX)
	KERAS_BACKEND=jax .venv-jax/bin/python $(PYTEST) --durations=5 $(ARGS) -m "$(NOT_ON_JAX)" \
		tests/applications/classification/test_rows.py tests/applications/detection/test_detectors.py \
		tests/applications/segmentation/test_rows.py -k "$(NETWORKS_ON_JAX)"

test-real: .venv-parity/.parity
	.venv-parity/bin/python -m pytest -m real $(ARGS)

test-keras-cv: .venv-keras-cv/.keras-cv
	.venv-keras-cv/bin/python -m pytest -m keras_cv $(ARGS)

test-browser: $(VENV)/.test
	$(BIN)/python -m pytest -m browser $(ARGS)

# Times kvision beside its peers: a set of 15 minutes; ALL=1 every row, ONLY="resnet50 vitals" some, QUICK=1 tries them.
bench: $(VENV)/.test .venv-parity/.parity .venv-bench/.bench
	$(BIN)/python benchmarks/run.py $(if $(ALL),--all) $(if $(QUICK),--quick) $(ONLY)

# On a machine with a card: steps beside torchvision there, 16-bit training and the numeric tests, in one table. The
# script alone runs in any environment with Keras and JAX's CUDA build, without TensorFlow.
gpu: $(VENV)/.gpu $(VENV)/.test .venv-parity/.parity
	$(BIN)/python benchmarks/gpu.py $(ARGS)

# One environment for daily work; the heavy ones stand apart.
$(VENV)/.base: setup.cfg pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/.%: $(VENV)/.base
	$(BIN)/pip install --quiet --editable ".[$*]"
	touch $@

$(VENV)/.dev: $(VENV)/.test
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

.venv-jax/.jax: setup.cfg pyproject.toml
	test -x .venv-jax/bin/python || $(PYTHON) -m venv .venv-jax
	.venv-jax/bin/pip install --quiet --editable ".[test,jax]"
	touch $@

.venv-parity/.parity: setup.cfg pyproject.toml
	test -x .venv-parity/bin/python || $(PYTHON) -m venv .venv-parity
	.venv-parity/bin/pip install --quiet --editable ".[test,parity]"
	touch $@

.venv-keras-cv/.keras-cv: setup.cfg pyproject.toml
	test -x .venv-keras-cv/bin/python || $(PYTHON) -m venv .venv-keras-cv
	.venv-keras-cv/bin/pip install --quiet --editable ".[test,keras-cv]"
	touch $@

.venv-bench/.bench: setup.cfg
	test -x .venv-bench/bin/python || $(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip install --quiet "tensorflow>=2.20" "keras>=3.15.1" keras-hub kyolo faster-coco-eval
	touch $@

clean:
	rm -rf .venv .venv-jax .venv-parity .venv-keras-cv .venv-bench build dist *.egg-info
