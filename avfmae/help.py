"""Help: a stage's in two parts, what a run needs and one changes first, then what one rarely touches."""

import contextlib
import dataclasses
import io
import re
from collections.abc import Iterator
from typing import Any

import tyro

from avfmae.console import narrow, print_fitted

FIRST = {
    "recipe", "config", "manifest", "manifests", "label_map", "out", "preset", "init", "held_out.manifest", "task", "folds",
    "optim.lr", "optim.epochs", "optim.total_batch", "optim.micro_batch", "data.workers", "precision", "seed",
}  # fmt: skip


def print_help(default: Any, command: str) -> None:
    """Prints the options of a configuration with the values that they have without the command line."""
    names = set(options(type(default)))
    parts = {"What a run needs, and what one changes first": FIRST & names, "What one rarely touches": names - FIRST}
    for number, (title, shown) in enumerate(parts.items()):
        part, text = showing(default, shown), io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit), narrow():
            tyro.cli(type(part), prog=f"avfmae {command}", args=["--help"], default=part)
        lines = text.getvalue().splitlines()
        boxes = next(i for i, line in enumerate(lines) if re.fullmatch(r"\W*options\W*", line))
        print_fitted("\n".join([*(lines[:boxes] if not number else []), f"{title}:", *lines[boxes:]]))


def options(kind: type) -> Iterator[str]:
    """The names of all options, those of sections with dots."""
    for f in dataclasses.fields(kind):
        if dataclasses.is_dataclass(f.type):
            yield from (f"{f.name}.{name}" for name in options(f.type))
        else:
            yield f.name


def showing(value: Any, names: set[str]) -> Any:
    """The same values in a subclass of their class, whose help shows the options of these names alone."""
    kind, changed = type(value), []
    values = {f.name: getattr(value, f.name) for f in dataclasses.fields(kind)}
    for f in dataclasses.fields(kind):
        if inside := {name.removeprefix(f"{f.name}.") for name in names if name.startswith(f"{f.name}.")}:
            values[f.name] = showing(values[f.name], inside)
            changed.append((f.name, type(values[f.name]), dataclasses.field()))
        elif f.name not in names:
            changed.append((f.name, tyro.conf.Suppress[f.type], dataclasses.field()))
    # What has changed has no default, so that it goes by keyword.
    how = {"frozen": kind.__dataclass_params__.frozen, "kw_only": True, "namespace": {"__doc__": kind.__doc__}}
    return dataclasses.make_dataclass(kind.__name__, changed, bases=(kind,), **how)(**values)
