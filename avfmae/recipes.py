"""Configuration files: the published recipes, and TOML files as typed dataclasses."""

import contextlib
import dataclasses
import tomllib
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

T = TypeVar("T")


def recipe_folder() -> Path:
    """Where the published recipes lie: ``avfmae/configs`` of an installed package, ``train/configs`` of a source tree."""
    installed = Path(__file__).parent / "configs"
    return installed if installed.is_dir() else installed.parents[1] / "train" / "configs"


def recipes(stage: str) -> list[str]:
    """The names of a stage's published recipes. ``stage``: ``pretrain``, ``psi`` or ``finetune``."""
    return sorted(path.stem.removesuffix(f"_{stage}") for path in recipe_folder().glob(f"*_{stage}.toml"))


def configuration(
    kind: Callable[..., T], stage: str, recipe: str | None = None, config: str | Path | None = None, preset: str | None = None,
    tables: Mapping[str, dict] | None = None,
) -> T:  # fmt: skip
    """A stage's configuration: the file ``config`` over the published ``recipe`` over the preset's model and the defaults.

    ``preset`` goes over those that file and recipe name, and so do ``tables``, by where they stand. Paths in a file are relative
    to the working directory.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: there is no such recipe; a file is no TOML, has an unknown key or a bad value; names file and key.
    """
    files = [] if recipe is None else [recipe_folder() / f"{recipe}_{stage}.toml"]
    if recipe is not None and recipe not in recipes(stage):
        known = f"{', '.join(recipes(stage))} for {stage} (from {recipe_folder()})"
        raise ValueError(f"--recipe: got {recipe!r}, expected one of {known}; a file of your own goes by --config")
    files += [] if config is None else [Path(config)]
    tables = {str(path): _read(path) for path in files} | dict(tables or {})
    presets = [_convert(str, table["preset"], f"{where}: preset") for where, table in tables.items() if "preset" in table]
    presets += [] if preset is None else [preset]
    run = kind(preset=presets[-1]) if presets else kind()
    for where, table in tables.items():
        run = build(run, table, where)
    return run


def read_table(path: Path) -> dict:
    """A configuration file's content."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such configuration file")
    try:
        table = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is no TOML ({error})") from error
    return table


def _read(path: Path) -> dict:
    table = read_table(path)
    if found := {"recipe", "config"} & set(table):
        raise ValueError(f"{path}: {found.pop()!r} goes on the command line, not into a configuration file")
    return table


WORDS = {tuple: "a list", dict: "a table"}  # what TOML calls them


def build(default: Any, table: dict, where: str) -> Any:
    """A copy of a dataclass with what the table gives; what the table leaves out stays.

    Raises:
        ValueError: an unknown key, or a bad value; begins with ``where`` and names the key.
    """
    known = typing.get_type_hints(type(default))
    if unknown := sorted(set(table) - set(known)):
        raise ValueError(f"{where}: unknown key {unknown[0]!r}; known are {', '.join(known)}")
    changes = {}
    for key, value in table.items():
        if not dataclasses.is_dataclass(known[key]):
            changes[key] = _convert(known[key], value, f"{where}: {key}")
        elif isinstance(value, dict):
            changes[key] = build(getattr(default, key), value, f"{where} [{key}]")
        else:
            raise ValueError(f"{where}: {key} is {value!r}, expected a table")
    try:
        return dataclasses.replace(default, **changes)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _convert(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        for option in arguments:
            with contextlib.suppress(ValueError):
                return _convert(option, value, where)
    elif origin is Literal:
        if value in arguments:
            return value
    elif origin is tuple and isinstance(value, list):
        each = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(each) == len(value):
            return tuple(_convert(k, v, where) for k, v in zip(each, value, strict=True))
    elif origin is dict and isinstance(value, dict):
        return {name: _convert(arguments[1], one, f"{where} [{name}]") for name, one in value.items()}
    elif kind is Path and isinstance(value, str):
        return Path(value)
    elif kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif isinstance(kind, type) and type(value) is kind:
        return value
    raise ValueError(f"{where} is {value!r}, expected {WORDS.get(origin or kind) or getattr(kind, '__name__', kind)}")
