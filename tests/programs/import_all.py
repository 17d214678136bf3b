"""Imports every module of the three packages, and prints how many there are and where ``avfmae`` lies."""

import importlib
import importlib.util
import pkgutil

import avfmae
import avfmae_benchmarks
import avfmae_kernels


def module_names(triton):
    """All but __main__, which would run, and what is compiled, which dispatch loads; Triton's only where it is installed."""
    for package in (avfmae, avfmae_kernels, avfmae_benchmarks):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            last = module.name.rpartition(".")[2]
            if not last.startswith("_") and (triton or not last.startswith("triton")):
                yield module.name


if __name__ == "__main__":
    names = list(module_names(importlib.util.find_spec("triton") is not None))
    for name in names:
        importlib.import_module(name)
    print(len(names), avfmae.__file__)
