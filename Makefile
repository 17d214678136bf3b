# make demo and make test work on a machine with nothing installed but Python and a C++ compiler.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-isa lint bench gpu-check clean

.venv/.installed: pyproject.toml setup.py constraints.txt $(shell find csrc -type f)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade "setuptools>=77" "pybind11>=3" ninja wheel
	$(BIN)/pip install --quiet -r constraints.txt
	$(BIN)/pip install --no-build-isolation -e ".[dev]" -c constraints.txt
	touch $@

demo: .venv/.installed
	$(BIN)/avfmae demo

test: .venv/.installed lint
	$(BIN)/pytest

# What depends on the processor, as on one that AVFMAE_ISA names (avx2, avx512).
test-isa: .venv/.installed
	$(BIN)/pytest -m isa

lint: .venv/.installed
	$(BIN)/ruff check .

bench: .venv/.installed
	$(BIN)/pytest benchmarks --benchmark-columns=median,iqr,rounds --benchmark-sort=name

gpu-check: .venv/.installed
	$(BIN)/python benchmarks/gpu_check.py

clean:
	rm -rf build .venv/.installed avfmae_kernels/*.so *.egg-info
