PYTHON ?= python3
BIN := .venv/bin
BENCH_OUT ?= docs/results/speed
DEVICE ?= cuda
.DEFAULT_GOAL := help

help:  ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/installed  ## the whole main job on 8x8 digits: diffusion model, training, AutoAttack, one table (5 minutes)
	$(BIN)/lightning-paf demo

test: .venv/installed-test  ## the whole test suite (8 minutes on 2 cores)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

check: .venv/installed-test  ## lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/installed-test  ## the documentation site, in docs/_build/html (1 minute)
	$(BIN)/python -m sphinx --fail-on-warning --keep-going -b html docs docs/_build/html

bench: .venv/installed-bench  ## the speed benchmarks for CPUs (10 minutes); JSON files in BENCH_OUT
	$(BIN)/python benchmarks/step.py --json $(BENCH_OUT)/step_cpu.json
	$(BIN)/python benchmarks/loader.py --json $(BENCH_OUT)/loader_cpu.json
	$(BIN)/python benchmarks/epoch.py --json $(BENCH_OUT)/epoch_cpu.json
	$(BIN)/python benchmarks/first_step.py --json $(BENCH_OUT)/first_step_cpu.json
	$(BIN)/python benchmarks/libraries.py --batch 16 --json $(BENCH_OUT)/libraries_cpu.json
	$(BIN)/python benchmarks/utilisation.py --width 16 --batch 32 --json $(BENCH_OUT)/utilisation_cpu.json

gpu: .venv/installed-test  ## all measurements that need a CUDA device; DATA=DIR, POOL=FILE, STEP=NAME; DEVICE=cpu rehearses
	$(BIN)/python benchmarks/gpu.py --device $(DEVICE) $(if $(DATA),--data $(DATA)) $(if $(POOL),--pool $(POOL)) \
		$(if $(STEP),--step $(STEP))

scale-test: .venv/installed-test  ## containers, torchrun hosts, SLURM, Kubernetes files; root, Debian (15 minutes)
	bash tests/scale/run.sh

clean:  ## remove the environment and caches, not the runs
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --progress-bar on -e .
	touch $@

.venv/installed-test: .venv/installed
	$(BIN)/python -m pip install --quiet -e '.[test]'
	touch $@

# adv-lib needs visdom, whose source imports pkg_resources while it is built; setuptools 81 removed that.
.venv/installed-bench: .venv/installed
	echo 'setuptools<81' > .venv/bench-constraints.txt
	$(BIN)/python -m pip install --quiet --build-constraint .venv/bench-constraints.txt -e '.[bench]'
	touch $@

.PHONY: help demo test check docs bench gpu scale-test clean
