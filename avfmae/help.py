"""The help of a training stage in two parts: what a run needs and one changes first, then what one rarely touches."""

import contextlib
import dataclasses
import io
import re
from collections.abc import Iterator
from typing import Any

import tyro

FIRST = {
    "recipe", "config", "manifest", "manifests", "label_map", "out", "preset", "init", "held_out.manifest", "task", "folds",
    "optim.lr", "optim.epochs", "optim.total_batch", "optim.micro_batch", "data.workers", "precision", "seed",
}  # fmt: skip


def print_help(kind: type, command: str, default: Any | None = None) -> None:
    """Prints the options of a configuration. ``default``: values that a recipe or a file gives."""
    names = set(options(kind))
    parts = {"What a run needs, and what one changes first": FIRST & names, "What one rarely touches": names - FIRST}
    for number, (title, shown) in enumerate(parts.items()):
        part, text = showing(kind, shown), io.StringIO()
        value = None if default is None else restricted(part, default)
        with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
            tyro.cli(part, prog=f"avfmae {command}", args=["--help"], default=value or part())
        lines = text.getvalue().splitlines()
        boxes = next(i for i, line in enumerate(lines) if re.fullmatch(r"\W*options\W*", line))
        print("\n".join([*(lines[:boxes] if not number else []), f"{title}:", *lines[boxes:]]))


def options(kind: type) -> Iterator[str]:
    """The names of all options, those of sections with dots."""
    for f in dataclasses.fields(kind):
        if dataclasses.is_dataclass(f.type):
            yield from (f"{f.name}.{name}" for name in options(f.type))
        else:
            yield f.name


def showing(kind: type, names: set[str]) -> type:
    """A subclass of ``kind`` whose help shows the options of these names alone."""
    changed = []
    for f in dataclasses.fields(kind):
        inside = {name.removeprefix(f"{f.name}.") for name in names if name.startswith(f"{f.name}.")}
        if inside:
            part = showing(f.type, inside)
            make = lambda part=part, f=f: restricted(part, f.default_factory())  # noqa: E731
            changed.append((f.name, part, dataclasses.field(default_factory=make)))
        elif f.name not in names:
            default = (
                {"default": f.default} if f.default_factory is dataclasses.MISSING else {"default_factory": f.default_factory}
            )
            changed.append((f.name, tyro.conf.Suppress[f.type], dataclasses.field(**default)))
    return dataclasses.make_dataclass(kind.__name__, changed, bases=(kind,), namespace={"__doc__": kind.__doc__})


def restricted(part: type, value: Any) -> Any:
    """A value as an instance of what :func:`showing` made of its class."""
    given = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    sections = {f.name: f.type for f in dataclasses.fields(part) if dataclasses.is_dataclass(f.type)}
    return part(**{name: restricted(sections[name], v) if name in sections else v for name, v in given.items()})
