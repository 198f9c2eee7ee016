# `make demo`, `make test` and `make test-all` set up what they need, once.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# Next to the environment, not in it: see tests/algorithms/side.py.
SIDE := .venv/transformers/site-packages
SIDE_OF_DATASETS := .venv/datasets/site-packages
WORKERS ?= 2
# Of what takes an hour, `make test-all` runs one part of fourteen: another one each day.
SHARE ?= $(shell date +%j)/14
LAB ?= runs/lab
N ?= 1000
SEED ?= 0

OF_BITS := $(addprefix tests/,training/test_loop.py training/test_salvage.py \
	training/test_reduction.py training/test_usual_tasks.py chaos end_to_end/test_bits.py)

.PHONY: install check docs test test-all test-slow demo lowest chaos lab lab-down bench bench-optimizers bench-peers clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[demo,dev]'
	$(BIN)/pip install --quiet --constraint constraints.txt --target $(SIDE) --no-deps \
		transformers huggingface-hub tokenizers regex tqdm hf-xet httpx2 httpcore2 h11 anyio truststore \
		peft accelerate psutil lightning pytorch-lightning
	$(BIN)/pip install --quiet --constraint constraints.txt --target $(SIDE_OF_DATASETS) --no-deps \
		datasets dill multiprocess xxhash httpx httpcore
	touch $@

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) docs

# The site, in runs/site; a broken link is an error.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# What to run before each commit: quick tests, as many at a time as there are cores.
test: check
	$(BIN)/pytest --numprocesses $(WORKERS) --ignore tests/end_to_end

# Also whole runs, which start clusters and fill the machine, and today's share of the pairs of
# algorithms, of what is marked as slow, and of bits without vector instructions.
test-all: test
	$(BIN)/pytest --numprocesses $(WORKERS) -m pairs --share $(SHARE) tests/algorithms
	$(BIN)/pytest --timeout 600 tests/end_to_end
	$(BIN)/pytest --timeout 1200 -m slow --share $(SHARE)
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 \
		$(BIN)/pytest --numprocesses $(WORKERS) --share $(SHARE) $(OF_BITS)

# All of what is shared out, such as sweeps, clusters of namespaces and chaos: each night.
test-slow: install
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 \
		$(BIN)/pytest --numprocesses $(WORKERS) $(OF_BITS)
	$(BIN)/pytest --numprocesses $(WORKERS) -m pairs tests/algorithms
	$(BIN)/pytest --timeout 1200 -m slow

demo: install
	$(BIN)/raytrain-plus demo

# The demo on the lowest versions that are allowed; it downloads them.
lowest:
	PYTHON=$(PYTHON) .ci/lowest

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

# Which optimizers and models keep the promise; the libraries stand next to the environment.
bench-optimizers: install
	$(BIN)/pip install --quiet --target benchmarks/.optimizers --no-deps \
		pytorch_optimizer==4.1.0 schedulefree==1.4.1 prodigyopt==1.1.2 heavyball==3.2.1
	$(BIN)/python -m benchmarks.optimizers
	$(BIN)/python -m benchmarks.models

# Environments for the libraries that `benchmarks.streams` and `benchmarks.survive` compare with.
bench-peers: install
	for peer in streaming:mosaicml-streaming litdata:litdata torchft:torchft==0.2.0; do \
		$(PYTHON) -m venv benchmarks/.venv-$${peer%%:*} && \
		benchmarks/.venv-$${peer%%:*}/bin/pip install --quiet "$$(grep '^torch==' constraints.txt)" $${peer##*:}; \
	done

clean:
	rm -rf .venv
