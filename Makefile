# make demo      train a small binary detector on real data and evaluate it
# make demo-seg  the same with a segmentor
# make test      run the tests (ARGS="-m slow" for the slow ones, ARGS=tests/test_layers for some)
# make wheels    build the package with its kernels for other machines, and its source archive, into dist
# make runtime   build the wheels of mmgroupnet-runtime, which runs .onnx files without torch, into runtime/dist
# make test-oldest  the tests of layers and kernels with the oldest torch and mmengine that the package allows
# make test-onedl  the tests with OpenMMLab's maintained forks (onedl-*), in an environment of its own
# make test-arm  run the kernels and the runtime for ARM, emulated by qemu (skips tests whose tools are missing)
# make test-gpu  train on a GPU (skips everything where torch sees none)
# make test-quick  the tests that fail first when something breaks, in under a minute
# make lint      check style, types and which part imports which
# make format    fix what tools can fix
# make docs      build the documentation into docs/_build/html
# make env       only prepare the environment and the kernels that the other targets need
#
# VENV=/some/dir            puts the environment there (over 5 GB); clones may share one
# PYTHON=/some/bin/python   uses that environment as it is and installs nothing
# BASE_PYTHON=python3.12    makes the environment with that interpreter (3.11 or 3.12)

VENV ?= $(CURDIR)/.venv
BASE_PYTHON ?= $(or $(firstword $(foreach python,python3 python3.12 python3.11,$(shell \
	$(python) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && echo $(python)))),python3)

# Clones may share an environment: the checkout's own package always comes first.
export PYTHONPATH := $(CURDIR)$(if $(PYTHONPATH),:$(PYTHONPATH))
# The models of the demo are small: beyond four threads they get slower, not faster.
ifndef OMP_NUM_THREADS
export OMP_NUM_THREADS := $(shell cores=$$(nproc); echo $$((cores < 4 ? cores : 4)))
endif

ifeq ($(strip $(PYTHON)),)
PY := $(VENV)/bin/python
# Written last, and named after the versions that were installed: an installation that was interrupted or has other
# versions is continued, and a new clone does not change an environment with the right ones.
STAMP := $(VENV)/.ready-$(shell cat requirements/lock.txt tools/misc/build_mmcv.py | cksum | cut -d ' ' -f 1)
else
PY := $(PYTHON)
endif

# The packed kernels of this checkout. Without a compiler they are left out, and everything that needs them runs
# simulated.
KERNELS := build/.kernels-built

# Closed forms of the quantizers, branches, shapes, the kernels compared with their simulation, and one battery; without
# those tests that start processes, compile or export.
QUICK_TESTS = tests/test_quantizers/test_activations.py tests/test_quantizers/test_weights.py \
	tests/test_layers/test_branches.py tests/test_layers/test_lean/test_sign_conv.py tests/test_ops/test_geometry.py \
	tests/test_ops/test_packing.py tests/test_ops/test_kernels.py tests/test_ops/test_convolve.py \
	tests/test_models/test_necks/test_binary_fpn.py::TestBinaryFPN
NOT_QUICK = TestSelection or TestFuzzer or TestThreads or exported

# Tests that need neither mmdet, mmsegmentation nor mmpretrain.
OLDEST_TESTS = tests/test_quantizers/test_activations.py tests/test_quantizers/test_weights.py \
	tests/test_layers/test_branches.py tests/test_layers/test_groupwise.py tests/test_layers/test_binary_linear.py \
	tests/test_layers/test_lean/test_sign_conv.py tests/test_ops/test_geometry.py tests/test_ops/test_convolve.py

# The files that clang-format formats; ONNX Runtime's header in csrc/onnxruntime/include keeps its own format.
CXX_FILES = $(wildcard csrc/*.cpp csrc/*.h csrc/onnxruntime/*.cpp csrc/onnxruntime/*.h runtime/examples/*.cpp tests/csrc/*.cpp)
CLANG_FORMAT = "$(PY)" -c 'from clang_format import clang_format; clang_format()'

.PHONY: help env packages demo demo-seg test test-quick test-oldest test-onedl test-arm test-gpu wheels runtime lint format docs

help:
	@sed -n '/^$$/q; s/^# \{0,1\}//p' Makefile

env: packages $(KERNELS)

packages:
ifdef STAMP
	@[ -e "$(STAMP)" ] || { set -e; \
	$(BASE_PYTHON) tools/misc/build_mmcv.py --preflight; \
	echo "Installing the pinned requirements into $(VENV): over 5 GB on disk, some minutes."; \
	rm -f "$(VENV)"/.ready-*; \
	"$(PY)" -m pip --version >/dev/null 2>&1 || $(BASE_PYTHON) -m venv "$(VENV)"; \
	"$(PY)" -m pip install --disable-pip-version-check --no-deps -r requirements/lock.txt; \
	"$(PY)" tools/misc/build_mmcv.py; \
	touch "$(STAMP)"; }
endif

$(KERNELS): setup.py $(wildcard csrc/*) | packages
	@echo "Compiling the packed kernels, under a minute."
	@mkdir -p build && "$(PY)" -W ignore setup.py --quiet build_ext --inplace && touch "$@"

demo: env
	"$(PY)" demo/run_demo.py $(ARGS)

demo-seg: env
	"$(PY)" demo/run_segmentation_demo.py $(ARGS)

# A process per core, up to four, with one thread each: the models of the tests are small.
test: env
	OMP_NUM_THREADS=1 "$(PY)" -m pytest --numprocesses "$$(cores=$$(nproc); echo $$((cores < 4 ? cores : 4)))" --dist loadscope $(ARGS)

test-quick: env
	OMP_NUM_THREADS=1 "$(PY)" -m pytest -k 'not ($(NOT_QUICK))' $(QUICK_TESTS) $(ARGS)

test-oldest:
	$(BASE_PYTHON) -m venv "$(VENV)-oldest"
	"$(VENV)-oldest/bin/python" -m pip install --disable-pip-version-check -r requirements/oldest.txt
	"$(VENV)-oldest/bin/python" -W ignore setup.py --quiet build_ext --inplace
	OMP_NUM_THREADS=1 "$(VENV)-oldest/bin/python" -m pytest $(OLDEST_TESTS) $(ARGS)

# All packages but OpenMMLab's have the same versions.
test-onedl: ONEDL_PY := $(VENV)-onedl/bin/python
test-onedl:
	$(BASE_PYTHON) -m venv "$(VENV)-onedl"
	grep -vE '^mm(det|engine|pretrain|segmentation)=' requirements/lock.txt | "$(ONEDL_PY)" -m pip install \
		--disable-pip-version-check --no-deps -r /dev/stdin -r requirements/onedl-lock.txt
	"$(ONEDL_PY)" tools/misc/build_mmcv.py --onedl
	$(MAKE) test PYTHON="$(ONEDL_PY)" ARGS='$(ARGS)'

wheels: packages
	"$(PY)" .ci/build_wheels.py

runtime: packages
	"$(PY)" runtime/build_wheels.py

test-arm: env
	OMP_NUM_THREADS=1 "$(PY)" -m pytest -m arm $(ARGS)

# The Triton kernels, which Triton's interpreter runs elsewhere, are compiled here.
test-gpu: env
	"$(PY)" -m pytest -m gpu tests/gpu $(ARGS)
	"$(PY)" -c 'import sys, torch; sys.exit(torch.cuda.is_available())' || "$(PY)" -m pytest $(ARGS) \
		tests/test_ops/test_triton_passes.py tests/test_layers/test_lean/test_triton.py

lint: packages
	"$(PY)" -m ruff check .
	"$(PY)" -m ruff format --check .
	@echo clang-format
	@$(CLANG_FORMAT) --dry-run -Werror $(CXX_FILES)
	PYTHONPATH="$$PYTHONPATH:runtime/src" "$(PY)" -c 'from importlinter.cli import lint_imports_command as run; run()' --no-logo
	"$(PY)" -m mypy

format: packages
	"$(PY)" -m ruff check --fix .
	"$(PY)" -m ruff format .
	$(CLANG_FORMAT) -i $(CXX_FILES)

# Warnings are errors, for example a broken link or a docstring that is not valid reStructuredText.
docs: packages
ifdef STAMP
	@"$(PY)" -c 'import furo, myst_parser, sphinx' 2>/dev/null || \
		"$(PY)" -m pip install --disable-pip-version-check --no-deps -r requirements/docs.txt
endif
	"$(PY)" -m sphinx -W --keep-going -q -c docs . docs/_build/html $(ARGS)
