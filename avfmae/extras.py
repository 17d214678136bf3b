"""Packages that only some features need: the extras of pyproject.toml."""

import importlib
from types import ModuleType


def need(module: str, extra: str, feature: str) -> ModuleType:
    """Imports a module of ``pip install 'avfmae[EXTRA]'``; a RuntimeError names the ``feature`` that asked for it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RuntimeError(f"{feature} needs {module.partition('.')[0]}: pip install 'avfmae[{extra}]' ({error})") from error
