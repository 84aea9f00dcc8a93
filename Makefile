# The Python that makes .venv, once; afterwards .venv is used. For another one: make lab PYTHON=python3.12
PYTHON ?= python3

# The version of torch for test-latest and test-oldest; empty is the newest and the oldest that pyproject.toml allows.
# On Linux PyPI has those as CUDA builds of several GB: PIP_EXTRA_INDEX_URL or a version that is there spares them.
TORCH ?=

# What `make bench` measures, as for Mixtral: make bench BENCH='--models mixtral-8x7b-v0.1 --budgets 24 16 12'
BENCH ?=

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

.DEFAULT_GOAL := help
.PHONY: help lab lessons quick test test-device test-gpu test-browser test-colab test-latest test-oldest test-full-size
.PHONY: bench outputs train picture lint address

help: ## Say what each target does
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s  %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

lab: $(INSTALLED) ## Open JupyterLab on the lessons, on this machine only
	$(BIN)/jupyter lab --ip=127.0.0.1 $(if $(filter 0,$(shell id -u)),--allow-root) notebooks

lessons: $(INSTALLED) ## Run every lesson on the bundled models; copies and HTML pages in build/lessons
	@$(BIN)/python tools/lessons.py

# On the CPU, with a card or without: what is compared was recorded there. Two workers, one thread each: also a check that
# no compared output depends on the number of threads. A file goes to one worker, which makes its fixtures once. Lessons
# run where each socket to another machine is refused, the last ones first: those take longest.
CHECKED := CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 $(BIN)/python

quick: lint ## Check the style, and the tests of what changed, the nearest first: under a minute
	@$(CHECKED) tools/quick.py $(BASE:%=--base %)

test: lint ## Check the code, the docstrings' examples and every lesson's outputs
	$(CHECKED) -m pytest -n 2 --dist loadfile
	$(CHECKED) -m pytest -p tests.no_network --nbval --nbval-current-env --nbval-cell-timeout=300 \
	    -n 2 --dist loadfile --no-loadscope-reorder $$(ls -r notebooks/*.ipynb)

test-device: $(INSTALLED) ## Run every lesson and the package's functions on a test device that is not the CPU
	env -u MISTRAL_LAB_MODEL OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/device -n 2 --dist worksteal

test-gpu: $(INSTALLED) ## The same, with the four-bit tests among them, on this machine's CUDA card
	env -u MISTRAL_LAB_MODEL $(BIN)/python -m pytest tests/device --device cuda

test-browser: $(INSTALLED) ## Open and run every lesson in JupyterLab in Chromium; pictures in build/screens
	$(BIN)/python -m pytest tests/browser

# Each in an environment of its own under build/, apart from .venv, and the lessons outside the repository.
test-colab: $(INSTALLED) ## Run every lesson where Colab's versions are, installed by its set-up cell
	$(BIN)/python tools/environments.py colab

test-latest: $(INSTALLED) ## Run every lesson and the library tests with the newest versions
	$(BIN)/python tools/environments.py latest $(TORCH:%=--torch %)

test-oldest: $(INSTALLED) ## Run every lesson and the library tests with the lowest versions in pyproject.toml
	$(BIN)/python tools/environments.py oldest $(TORCH:%=--torch %)

test-full-size: $(INSTALLED) ## Run the lessons that offer the 7B tier on a CPU at full size; 25 GB of disk, 20 minutes
	$(BIN)/python tools/full_size_lessons.py

bench: $(INSTALLED) ## Time the lab beside transformers and llama.cpp on Mistral 7B at full size; 12 GB of disk, half an hour
	@$(BIN)/python -c 'import gguf, llama_cpp' 2>/dev/null || { echo 'Compiling llama.cpp, once: this takes minutes'; \
	    $(BIN)/python -m pip install --editable '.[bench]' --constraint constraints.txt; } || true
	$(BIN)/python benchmarks/bench.py $(BENCH)

outputs: $(INSTALLED) ## Run every lesson and keep its outputs, for committing
	@$(BIN)/python tools/outputs.py

train: $(INSTALLED) ## Train the bundled models again, and the others that lessons show as records
	$(BIN)/python -m mistral_lab.training

picture: $(INSTALLED) ## Draw the pictures in docs again
	@$(BIN)/python tools/picture.py

lint: $(INSTALLED) ## Check the style of code and lessons
	$(BIN)/ruff check .

address: $(INSTALLED) ## Move the public address: make address REPO=owner/name
	@$(BIN)/python tools/address.py '$(REPO)'
	@touch $(INSTALLED) # pyproject.toml is newer now, but nothing has to be installed again

$(INSTALLED): pyproject.toml constraints.txt
	@test -x $(BIN)/pip || $(PYTHON) -c 'import sys; 0x30b0000 <= sys.hexversion < 0x30e0000 or \
	    sys.exit("Mistral Lab needs Python 3.11 to 3.13; $(PYTHON) is %d.%d: make $(MAKECMDGOALS) PYTHON=python3.12" % sys.version_info[:2])'
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --editable '.[lab,dev,finetune]' --constraint constraints.txt
	@touch $@
