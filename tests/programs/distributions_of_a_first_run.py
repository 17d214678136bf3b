"""Prints the distributions of all that the modules of a GPU's first run import."""

import importlib
import importlib.metadata
import sys

MODULES = (
    "avfmae.doctor",
    "avfmae.models.pretraining",
    *(f"avfmae_benchmarks.{name}" for name in ("step", "kernels", "scaling", "plots")),
    *(f"avfmae_benchmarks.first.{name}" for name in ("ahead", "page", "recorded")),
    "pytest",
)

if __name__ == "__main__":
    before = set(sys.modules)
    for name in MODULES:
        importlib.import_module(name)
    owners = importlib.metadata.packages_distributions()
    print(*(owner for name in set(sys.modules) - before if "." not in name for owner in owners.get(name, ())))
