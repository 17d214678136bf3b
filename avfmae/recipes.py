"""Configuration files: the published recipes, and TOML files as typed dataclasses."""

import dataclasses
import tomllib
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar

T = TypeVar("T")


def recipe_folder() -> Path:
    """Where the published recipes lie: ``avfmae/configs`` of an installed package, ``train/configs`` of a source tree."""
    package = Path(__file__).parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "train" / "configs"


def recipes(stage: str) -> list[str]:
    """The names of a stage's published recipes. ``stage``: ``pretrain``, ``psi`` or ``finetune``."""
    return sorted(path.stem.removesuffix(f"_{stage}") for path in recipe_folder().glob(f"*_{stage}.toml"))


def read_recipe(kind: type[T], stage: str, name: str) -> T:
    """A published recipe of a stage as a configuration of ``kind``.

    Raises:
        ValueError: the stage has no recipe of this name; lists those that it has.
    """
    if name not in recipes(stage):
        raise ValueError(
            f"--recipe: got {name!r}, expected one of {', '.join(recipes(stage))} for {stage} (from {recipe_folder()}); "
            "a file of your own goes by --config"
        )
    return read_toml(kind, recipe_folder() / f"{name}_{stage}.toml")


def read_toml(kind: type[T], path: str | Path, default: T | None = None) -> T:
    """A configuration of ``kind`` from a TOML file, over ``default``; paths in it are relative to the working directory.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no TOML, has an unknown key, or a value of the wrong type; names file and key.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such configuration file")
    try:
        table = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is no TOML ({error})") from error
    for key in ("recipe", "config"):
        if key in table:
            raise ValueError(f"{path}: {key!r} goes on the command line, not into a configuration file")
    return _build(kind() if default is None else default, table, str(path))


def _build(default: Any, table: dict, where: str) -> Any:
    """A copy of ``default`` with what the table gives; what the table leaves out stays."""
    known = typing.get_type_hints(type(default))
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise ValueError(f"{where}: unknown key {unknown[0]!r}; known are {', '.join(known)}")
    changes = {}
    for key, value in table.items():
        if dataclasses.is_dataclass(known[key]):
            if not isinstance(value, dict):
                raise ValueError(f"{where}: {key} is {value!r}, expected a table")
            changes[key] = _build(getattr(default, key), value, f"{where} [{key}]")
        else:
            changes[key] = _convert(known[key], value, f"{where}: {key}")
    return dataclasses.replace(default, **changes)


def _convert(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        for option in arguments:
            try:
                return _convert(option, value, where)
            except ValueError:
                continue
    elif origin is Literal:
        if value in arguments:
            return value
    elif origin is tuple and isinstance(value, list):
        each = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(each) == len(value):
            return tuple(_convert(k, v, where) for k, v in zip(each, value, strict=True))
    elif kind is Path and isinstance(value, str):
        return Path(value)
    elif kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif isinstance(kind, type) and type(value) is kind:
        return value
    raise ValueError(f"{where} is {value!r}, expected {getattr(kind, '__name__', None) or kind}")
