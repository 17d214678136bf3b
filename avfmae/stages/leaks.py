"""Clips that a model must not learn from: those that it will be tested on, by whatever name or part they come."""

import os
from collections.abc import Sequence
from functools import cache

from avfmae.console import console
from avfmae.data.clip import Clip
from avfmae.data.sources import open_clip


@cache
def _digest(path: str) -> str | None:
    return open_clip(path).digest()


def leaks(clips: Sequence[Clip], held: Sequence[Clip], contents: bool = True) -> dict[int, str]:
    """Which clips are held out: clip id -> why.

    By path, whichever part of the recording; by subject; or by content, which finds a copy under another name. A subject is the
    same where its name is, unless both clips name their data sets and these differ.

    Args:
        contents: compare the contents of files, for which those of equal size are read.
    """
    parts: dict[str, set[tuple]] = {}  # held-out recording -> its segments
    for c in held:
        parts.setdefault(os.path.realpath(c.path), set()).add((c.start, c.end))
    datasets: dict[str, set[str | None]] = {}  # of every held-out subject
    for c in held:
        if c.subject is not None:
            datasets.setdefault(c.subject, set()).add(c.dataset)
    copies = _copies(clips, held) if contents else {}
    found = {}
    for c in clips:
        if (segments := parts.get(os.path.realpath(c.path))) is not None:
            whole = (c.start, c.end) in segments
            found[c.id] = f"{c.path} is a held-out clip" if whole else f"{c.path}: another segment of this recording is held out"
        elif (sets := datasets.get(c.subject or "")) and (c.dataset is None or sets & {None, c.dataset}):
            found[c.id] = f"{c.path}: subject {c.subject} is held out"
        elif c.id in copies:
            found[c.id] = f"{c.path} is a copy of a held-out clip ({copies[c.id]}), or made of its file"
    return found


def _copies(clips: Sequence[Clip], held: Sequence[Clip]) -> dict[int, str]:
    """Clip id -> the held-out path that has the same content.

    Files of different sizes are not copies. Where a size is not known (of prepared clips), files are compared by digest alone.
    """
    size_of = cache(lambda path: open_clip(path).size_hint())
    known = all(size_of(c.path) is not None for c in (*held, *clips))
    same_size: dict[int | None, list[str]] = {}  # the held-out paths
    for path in {c.path: None for c in held}:
        same_size.setdefault(size_of(path) if known else None, []).append(path)
    digests_of = cache(lambda size: {digest: path for path in same_size.get(size, ()) if (digest := _digest(path)) is not None})
    found = {}
    for c in clips:
        if (held_out := digests_of(size_of(c.path) if known else None)) and (path := held_out.get(_digest(c.path) or "")):
            found[c.id] = path
    return found


def refuse_tested(trained: Sequence[Clip], tested: Sequence[Clip], where: str, check: str) -> None:
    """``check``: ``contents``, ``names`` (reads no files) or ``off``.

    Raises:
        ValueError: clips that are learnt from are tested; lists them.
    """
    if check != "off" and (found := leaks(trained, tested, check == "contents")):
        shown = "\n  ".join(list(found.values())[:5])
        raise ValueError(f"{where}: {len(found)} training clips are tested (--leaks off trains anyway):\n  {shown}")


def refuse_leaks(clips: list[Clip], held: Sequence[Clip], on_leak: str, contents: bool = True) -> list[Clip]:
    """The clips without those that are held out. ``on_leak``: ``refuse`` or ``exclude``.

    Raises:
        ValueError: there are such clips and ``on_leak`` is ``refuse``; lists them.
    """
    found = leaks(clips, held, contents)
    if found and on_leak == "refuse":
        shown = "\n  ".join(list(found.values())[:5])
        raise ValueError(
            f"held_out: {len(found)} of {len(clips)} clips belong to the target's evaluation (on_leak = 'exclude' leaves "
            f"them out):\n  {shown}"
        )
    if found:
        console.print(f"held_out: {len(found)} clips of the target's evaluation are left out", highlight=False)
    return [c for c in clips if c.id not in found]
