# make demo        a story, told by the simulated accelerator and checked bit by bit
# make demo-board  the same through PYNQ and a virtual board
# make test        all tests        make lint    style and types
# make test-board  the tests with PYNQ, 3.1 and 4.0, against virtual boards
# make test-gates  the ULX3S's netlist, gate by gate, against the golden device (an hour or more)
# make test-configs   fifty random accelerators, each built and compared with the golden device (an hour)
# make bench       cycles against their baselines, and how fast the simulation is
# make bench-update   the same written as the new baselines, after a change that was meant
# make identity    hashes of Verilog, programs, streams and model files against their baselines
# make metrics     how long functions, units and files are
# make transcripts   the recorded runs that the tests replay, again
# make model       train the shipped model again (about 15 minutes)
# make clean       remove what was built; make distclean removes .venv, too
#
# Everything is installed into .venv, with the versions of requirements.lock; what needs PYNQ into
# .venv-pynq4 and .venv-pynq3, because it needs older packages than the rest.

PYTHON ?= python3
PROMPT ?= Once upon a time
ON ?= verilator
JOBS ?= $(shell nproc 2>/dev/null || echo 2)

VENV := .venv
BIN := $(VENV)/bin
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet -c requirements.lock
TYPES := build/types/tokenfabric

export PROMPT

.PHONY: demo demo-board test test-board test-gates test-configs lint identity identity-update metrics bench bench-update transcripts model clean distclean
.DELETE_ON_ERROR:

demo: $(VENV)/.demo
	@$(BIN)/tokenfabric generate "$$PROMPT" --on $(ON) --verify
	@echo
	@echo "The command is $(BIN)/tokenfabric; to call it tokenfabric: source $(BIN)/activate"

demo-board: .venv-pynq4/.done
	@.venv-pynq4/bin/python notebooks/play notebooks/1_first_tokens.ipynb

test: $(VENV)/.dev
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

# PYNQ 4.0 drives the UltraScale+ boards, 3.1 those with a Zynq-7000.
test-board: .venv-pynq4/.done .venv-pynq3/.done
	.venv-pynq4/bin/python -m pytest -q tests/board $(ARGS)
	.venv-pynq3/bin/python -m pytest -q tests/board $(ARGS)

test-gates: $(VENV)/.dev
	$(BIN)/python -m pytest -q -s tests/gates $(ARGS)

test-configs: $(VENV)/.dev
	$(BIN)/python -m pytest -v tests/configs $(ARGS)

# mypy does not follow the package-dir mapping of an editable install: it gets a tree of links.
lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	@rm -rf $(TYPES) && mkdir -p $(TYPES)
	@ln -s $(CURDIR)/tokenfabric/*.py $(CURDIR)/tokenfabric/commands $(TYPES)
	@ln -s $(CURDIR)/core $(CURDIR)/compiler $(CURDIR)/quant $(CURDIR)/host $(CURDIR)/sim $(TYPES)
	cd build/types && ../../$(BIN)/mypy --config-file ../../pyproject.toml \
		--cache-dir ../../.mypy_cache -p tokenfabric

# What the project makes of fixed inputs, as hashes: for changes that should change none of it.
identity identity-update: $(VENV)/.dev
	$(BIN)/python benchmarks/identity.py $(if $(findstring update,$@),--update)

# How long functions, units and files are.
metrics: $(VENV)/.dev
	@$(BIN)/python benchmarks/metrics.py --all

bench bench-update: $(VENV)/.dev
	$(BIN)/python benchmarks/bench.py $(if $(findstring update,$@),--update)

# Runs that the tests replay: after a change of the fingerprint.
transcripts: $(VENV)/.demo .venv-pynq4/.done
	$(BIN)/tokenfabric generate "Once upon a time" --model tests/data/stories.tfm --context 128 \
		-n 24 --record tests/data/stories.jsonl
	.venv-pynq4/bin/python tests/board/record.py

model: $(VENV)/.dev
	$(BIN)/python models/stories/train.py -o models/stories --seed 1

clean:
	rm -rf build *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV) .venv-pynq4 .venv-pynq3

.venv-pynq%/.done: pyproject.toml requirements-pynq%.lock
	@.ci/system $(PYTHON)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info >= (3, 13) and "PYNQ needs numpy 1, so \
	Python 3.10 to 3.12; name one with: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv-pynq$*
	@echo "installing PYNQ $* into .venv-pynq$*"
	@PIP_DISABLE_PIP_VERSION_CHECK=1 .venv-pynq$*/bin/python -m pip install --quiet \
		-c requirements-pynq$*.lock -e '.[pynq$*]'
	@touch $@

$(BIN)/python:
	@.ci/system $(PYTHON)
	$(PYTHON) -m venv $(VENV)

# The stamps are touched last: an interrupted installation is taken up again.
$(VENV)/.demo: pyproject.toml requirements.lock | $(BIN)/python
	@.ci/system $(BIN)/python
	@echo "installing packages into $(VENV)"
	@$(PIP) -e '.[sim]'
	@touch $@

$(VENV)/.dev: pyproject.toml requirements.lock | $(BIN)/python
	@.ci/system $(BIN)/python
	@echo "installing packages for the tests into $(VENV) (PyTorch is one of them)"
	@$(PIP) -e '.[dev]'
	@touch $(VENV)/.demo $@
