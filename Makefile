# `make demo` and `make test` set themselves up from nothing.
PYTHON ?= python3
VENV = .venv
BIN := $(VENV)/bin
# Without bytecode, which Python writes for the modules that it imports.
PIP = $(BIN)/pip install --progress-bar off --no-compile
COMPILED := $(abspath $(VENV))/mmcv-compiled
# The everyday tests take mmcv as it is there, by default without its compiled operators.
MMCV := $(VENV)/$(if $(wildcard $(VENV)/.openmmlab),.openmmlab,.mmcv-lite)
# The kernels, in C++.
CPU = ilm_plugins/ops/engine/cpu
CPP = $(wildcard $(CPU)/*.[ch]pp ilm_plugins/ops/networks/*.hpp ilm_plugins/ops/networks/*/*.hpp)
# Files whole: the tests of a file share what has been trained for them.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile

# Without bytecode, each process would compile what it imports, such as all of torch.
unexport PYTHONDONTWRITEBYTECODE

.NOTPARALLEL:
.PHONY: help docs notebook demo bench gpu test test-wide test-versions test-oldest test-newest coverage mutants lint \
	format sanitize install install-test install-detectron2 install-openmmlab install-mathjax clean

help:
	@echo "make demo                train a small Mask R-CNN with an ILM+GN box head, and show it"
	@echo "make bench               time the layers and whole models; tables and JSON"
	@echo "make gpu                 the tests that need a GPU, and the benchmark on it; needs no network"
	@echo "make test                lint and the everyday tests"
	@echo "make test-wide           more tests: mmcv's compiled operators, the site, exports, torchrun"
	@echo "make test-versions       the oldest and the newest torch, in .venv-oldest and .venv-newest"
	@echo "make sanitize            random cases of the C++ kernels with sanitizers, for ten minutes"
	@echo "make docs                the documentation site, in output/site"
	@echo "make notebook            execute docs/notebook.ipynb, and save its outputs"
	@echo "make mutants ROOM=surgery  the small defects in a room that its tests find"
	@echo "make coverage            the lines and branches that the test suite runs"
	@echo "make install-detectron2  detectron2 into VENV (default: .venv), by a pinned wheel"
	@echo "make install-openmmlab   mmcv, mmdet, mmseg and mmpretrain into VENV, likewise"
	@echo "make install-mathjax     for a test of the pages' equations, by npm"

demo: install install-detectron2
	$(BIN)/python -m ilm_plugins demo configs/detectron2/shapes/mask_rcnn_R_18_FPN_ilmgn.yaml

bench: install install-detectron2
	$(BIN)/python -m benchmarks

# Installs nothing: a machine with a GPU may have no network.
gpu:
	$(or $(wildcard $(BIN)/python),$(PYTHON)) -m benchmarks.gpu

test: install-test lint install-detectron2 $(MMCV)
	$(PYTEST) -m "not wide and not long" --durations 10

test-wide: install-test install-detectron2 $(VENV)/.mmcv-compiled $(if $(shell command -v npm),install-mathjax)
	PYTHONPATH="$(COMPILED)$${PYTHONPATH:+:$$PYTHONPATH}" $(PYTEST) -m "wide and not long" --durations 10

# The oldest torch that pyproject.toml promises, and the newest on pip's index, with the frameworks.
test-versions: test-oldest test-newest
test-oldest: TORCH = torch==$(shell sed -n 's/.*"torch>=\([0-9.]*\)".*/\1/p' pyproject.toml)
test-oldest: OF_ITS_TIME = -c requirements/oldest.txt
test-newest: TORCH = torch
test-oldest test-newest: test-%:
	$(MAKE) VENV=.venv-$* .venv-$*/.build
	.venv-$*/bin/pip install --progress-bar off --upgrade "$(TORCH)" -r requirements/versions.txt $(OF_ITS_TIME)
	$(MAKE) VENV=.venv-$* install-detectron2 .venv-$*/.mmcv-lite
	.venv-$*/bin/pip install --no-deps --no-build-isolation -e .
	.venv-$*/bin/pip install --progress-bar off --upgrade --target .venv-$*/transformers transformers \
		$(OF_ITS_TIME)
	.venv-$*/bin/python -m pytest -n 2 --dist loadfile -m "not wide and not long" tests/equations \
		tests/layers tests/contract.py tests/surgery tests/ops/test_compile.py tests/ops/test_triton.py \
		tests/wide/test_export.py \
		$(TRAININGS)
	PYTHONPATH=.venv-$*/transformers .venv-$*/bin/python -m pytest tests/frameworks/test_transformers.py

# One of each framework; transformers, with which mmpretrain does not import, stands apart.
TRAININGS = tests/frameworks/test_timm.py \
	tests/frameworks/detectron2/test_training.py::test_a_run_writes_its_record \
	tests/frameworks/openmmlab/test_training.py::test_a_training_leaves_its_record

coverage: install-test install-detectron2 $(VENV)/.mmcv-compiled
	PYTHONPATH="$(COMPILED)$${PYTHONPATH:+:$$PYTHONPATH}" $(PYTEST) -m "not long" --cov

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	$(BIN)/clang-tidy --quiet $(CPU)/kernels.cpp

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

sanitize: install-test
	$(BIN)/clang-tidy --quiet --checks="-*,clang-analyzer-*" $(CPU)/kernels.cpp
	PYTHONPATH=.:tests $(BIN)/python -m helpers.fuzz --sanitize --seconds 600

# A room of the package, of tests/mutants.py.
mutants: install-test install-detectron2 $(VENV)/.mmcv-lite
	$(PIP) mutmut==3.8.1
	$(BIN)/python tests/mutants.py $(ROOM)

install: $(VENV)/.installed

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 10) <= v <= (3, 13) or \
		sys.exit("error: $(PYTHON) is Python %d.%d; give one of 3.10 to 3.13, PYTHON=..." % v)'
	$(PYTHON) -m venv $(VENV) || { rm -f $@; exit 1; }

# What builds packages that have no wheel, without an environment of its own for each.
$(VENV)/.build: | $(BIN)/python
	$(PIP) setuptools==80.9.0 wheel==0.48.0
	touch $@

$(VENV)/.base: requirements/base.txt | $(BIN)/python
	$(PIP) -r requirements/base.txt
	touch $@

# Where the kernels are missing, or not wanted, they are built or removed.
ifneq ($(if $(wildcard $(CPU)/kernels.so),,1),$(filter 1,$(ILM_PLUGINS_WITHOUT_C)))
.PHONY: $(VENV)/.installed
endif

$(VENV)/.installed: $(VENV)/.base setup.py pyproject.toml $(CPP)
	$(PIP) --no-deps --no-build-isolation -e .
	touch $@

install-test: $(VENV)/.test install

# What takes longest to import for the first time: Python writes the bytecode, which pip does not,
# while the other packages are installed.
LARGE = torch._inductor.compile_fx, torch.onnx, torchvision, timm, seaborn, sklearn.manifold, \
	torchmetrics, onnxscript, sympy.printing

# All packages in one round of pip, which reads and compares the versions of all each time.
$(VENV)/.test: requirements/test.txt requirements/detectron2.txt requirements/docs.txt requirements/base.txt \
		| $(VENV)/.build
	$(PIP) --no-build-isolation -r requirements/test.txt -r requirements/detectron2.txt
	$(BIN)/python -c "import $(LARGE)" > $(VENV)/bytecode.log 2>&1 &
	touch $(VENV)/.base $(VENV)/.docs $(VENV)/.detectron2-packages $@

$(VENV)/.docs: requirements/docs.txt requirements/base.txt | $(BIN)/python
	$(PIP) -r requirements/docs.txt
	touch $(VENV)/.base $@

# With VENV=/path/to/environment given: a framework alone, into an environment that has torch.
ifneq ($(origin VENV),command line)
install-detectron2 install-openmmlab: install
endif
install-detectron2: $(VENV)/.detectron2

$(VENV)/.detectron2-packages: requirements/detectron2.txt | $(VENV)/.build
	$(PIP) --no-build-isolation -r requirements/detectron2.txt
	touch $@

$(VENV)/.detectron2: $(VENV)/.detectron2-packages requirements/detectron2-wheel.txt
	site=$$($(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))") && \
	$(PIP) --upgrade --no-deps --only-binary=:all: --python-version 3.10 \
		--implementation cp --abi none --target "$$site" -r requirements/detectron2-wheel.txt
	touch $@

install-openmmlab: $(VENV)/.openmmlab

$(VENV)/.openmmlab: $(VENV)/.openmmlab-packages requirements/mmcv.txt
	$(BIN)/python tools/install_mmcv.py compiled
	rm -f $(VENV)/.mmcv-lite
	touch $@

$(VENV)/.openmmlab-packages: requirements/openmmlab.txt requirements/openmmlab-packages.txt | $(VENV)/.build
	$(PIP) --no-deps -r requirements/openmmlab.txt
	$(PIP) --no-deps --no-build-isolation -r requirements/openmmlab-packages.txt
	touch $@

# For the everyday tests, mmcv without its compiled operators, which is built in seconds.
$(VENV)/.mmcv-lite: $(VENV)/.openmmlab-packages requirements/mmcv.txt
	$(BIN)/python tools/install_mmcv.py lite
	touch $@

# The compiled mmcv beside the environment, for the wide tests alone: on PYTHONPATH it comes first.
$(VENV)/.mmcv-compiled: $(VENV)/.openmmlab-packages requirements/mmcv.txt
	rm -rf "$(COMPILED)"
	$(BIN)/python tools/install_mmcv.py compiled --target "$(COMPILED)"
	touch $@

# GitHub's renderer of equations, which the wide tests ask by node.
NODE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/ilm_plugins/node
install-mathjax: $(NODE)/node_modules/mathjax/package.json

$(NODE)/node_modules/mathjax/package.json:
	npm install --no-audit --no-fund --prefix "$(NODE)" mathjax@3.2.2

docs: $(VENV)/.docs install
	$(BIN)/sphinx-build -W --keep-going -q -b html docs output/site

notebook: install-test
	$(BIN)/python tools/run_notebook.py

clean:
	rm -rf .venv .venv-oldest .venv-newest build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
