"""Clips that a model must not learn from: those that it will be tested on, by whatever name or part they come."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cache

from avfmae.console import console
from avfmae.data.clip import Clip, dataset_key
from avfmae.data.sources import open_clip


@cache
def _digest(path: str) -> str | None:
    return open_clip(path).digest()


def leaks(clips: Sequence[Clip], held: Sequence[Clip], contents: bool = True) -> dict[int, str]:
    """Which clips are held out: clip id -> why.

    By path, whichever part of the recording; by subject; by content, which finds a copy under another name; or by a sound file of
    its own, which other crops of a face leave as it is. A subject is the same where its name is, unless both clips name their
    data sets and these differ; names are compared without regard to capitals. A sound that several held-out recordings have, such
    as silence, tells nothing.

    Args:
        contents: compare the contents of files, for which those of equal size are read.
    """
    parts: dict[str, set[tuple]] = {}  # held-out recording -> its segments
    for c in held:
        parts.setdefault(os.path.realpath(c.path), set()).add((c.start, c.end))
    datasets: dict[str, set[str]] = {}  # of every held-out subject
    for c in held:
        if c.subject is not None:
            datasets.setdefault(_subject_key(c.subject), set()).add(dataset_key(c.dataset or ""))
    pairs = {(os.path.realpath(c.audio_path), os.path.realpath(c.path)) for c in held if c.audio_path}
    sounds = {sound for sound, times in Counter(sound for sound, _ in pairs).items() if times == 1}
    copies, heard = {}, {}
    if contents:
        copies = _copies({c.id: c.path for c in clips}, {c.path: None for c in held})
        heard = _copies({c.id: c.audio_path for c in clips if c.audio_path}, sounds, alone=True)
    found = {}
    for c in clips:
        if (segments := parts.get(os.path.realpath(c.path))) is not None:
            whole = (c.start, c.end) in segments
            found[c.id] = f"{c.path} is a held-out clip" if whole else f"{c.path}: another segment of this recording is held out"
        elif (sets := datasets.get(_subject_key(c.subject or ""))) and (not c.dataset or sets & {"", dataset_key(c.dataset)}):
            found[c.id] = f"{c.path}: subject {c.subject} is held out"
        elif c.id in copies:
            found[c.id] = f"{c.path} is a copy of a held-out clip ({copies[c.id]}), or made of its file"
        elif c.audio_path and ((sound := os.path.realpath(c.audio_path)) in sounds or sound in parts or c.id in heard):
            found[c.id] = f"{c.path}: its sound ({c.audio_path}) is a held-out clip's"
    return found


def _subject_key(subject: str) -> str:
    return subject.strip().casefold()


def _copies(clips: Mapping[int, str], held: Iterable[str], alone: bool = False) -> dict[int, str]:
    """Clip id -> the held-out path that has the same content. ``alone``: which no other held-out path has.

    Files of different sizes are not copies. Where a size is not known (of prepared clips), files are compared by digest alone.
    """
    size_of, held = cache(lambda path: open_clip(path).size_hint()), [*held]
    known = all(size_of(path) is not None for path in (*held, *clips.values()))
    same_size: dict[int | None, list[str]] = {}  # the held-out paths
    for path in held:
        same_size.setdefault(size_of(path) if known else None, []).append(path)

    @cache
    def digests_of(size: int | None) -> dict[str, str]:
        pairs = [(digest, path) for path in same_size.get(size, ()) if (digest := _digest(path)) is not None]
        times = Counter(digest for digest, _ in pairs)
        return {digest: path for digest, path in pairs if not alone or times[digest] == 1}

    found = {}
    for number, mine in clips.items():
        if (held_out := digests_of(size_of(mine) if known else None)) and (path := held_out.get(_digest(mine) or "")):
            found[number] = path
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
