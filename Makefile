# Two commands: `make demo` and `make test`. Both set up what they need, once.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# Beside the environment, not in it: see tests/algorithms/side.py.
SIDE := .venv/transformers/site-packages
HALF := tests/algorithms tests/frontier tests/observe
LAB ?= runs/lab
N ?= 1000
SEED ?= 0

.PHONY: install check test test-one-half test-other-half test-slow demo chaos lab lab-down bench bench-peers clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[demo,dev]'
	$(BIN)/pip install --quiet --constraint constraints.txt --target $(SIDE) --no-deps \
		transformers huggingface-hub tokenizers regex tqdm hf-xet httpx2 httpcore2 h11 anyio truststore
	touch $@

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Quick tests in two processes side by side, about as long; then those that start clusters and fill the machine.
test: check
	$(MAKE) -j2 test-one-half test-other-half
	$(BIN)/pytest tests/end_to_end

test-one-half: install
	$(BIN)/pytest $(HALF)

test-other-half: install
	$(BIN)/pytest $(HALF:%=--ignore=%) --ignore tests/end_to_end

# What takes minutes and seldom breaks: every algorithm together with torch.compile, more chaos.
test-slow: install
	$(BIN)/pytest -m slow --timeout 600

demo: install
	$(BIN)/raytrain-plus demo

# Many random schedules of faults, each held against the undisturbed run.
chaos: install
	$(BIN)/raytrain-plus chaos tests/end_to_end/tasks.py:Momentum --runs $(N) --seed $(SEED) \
		--logical-ranks 6 --batch-size 48

# Hosts on this machine that reach each other by ssh, to play with: cluster/lab/README.md.
lab: install
	$(BIN)/python -m cluster.lab up $(LAB) --ssh laptop head n1 n2

lab-down: install
	$(BIN)/python -m cluster.lab down $(LAB)

bench: install
	$(BIN)/python -m benchmarks

# Environments for the libraries that `benchmarks.streams` and `benchmarks.survive` compare with.
bench-peers: install
	for peer in streaming:mosaicml-streaming litdata:litdata torchft:torchft==0.2.0; do \
		$(PYTHON) -m venv benchmarks/.venv-$${peer%%:*} && \
		benchmarks/.venv-$${peer%%:*}/bin/pip install --quiet "$$(grep '^torch==' constraints.txt)" $${peer##*:}; \
	done

clean:
	rm -rf .venv
