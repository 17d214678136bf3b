# make demo and make test work on a machine with nothing installed but Python and a C++ compiler.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint bench gpu-first gpu-wheels clean

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

lint: .venv/.installed
	$(BIN)/ruff check .

bench: .venv/.installed
	$(BIN)/pytest benchmarks --benchmark-columns=median,iqr,rounds --benchmark-sort=name

gpu-first: .venv/.installed
	$(BIN)/python benchmarks/gpu_first.py

gpu-wheels: .venv/.installed
	$(BIN)/python tools/gpu_wheels.py

clean:
	rm -rf build .venv/.installed avfmae_kernels/*.so *.egg-info
