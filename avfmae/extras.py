"""Packages that only some features need: the extras of pyproject.toml."""

import importlib
from types import ModuleType


def need(module: str, extra: str, feature: str) -> ModuleType:
    """Imports a module that an extra of the package brings.

    Args:
        module: its import name.
        extra: the name in ``pip install 'avfmae[EXTRA]'``.
        feature: what asked for it, as the user wrote it.

    Raises:
        RuntimeError: it does not import; names the feature, the module and the extra.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RuntimeError(f"{feature} needs {module.partition('.')[0]}: pip install 'avfmae[{extra}]' ({error})") from error
