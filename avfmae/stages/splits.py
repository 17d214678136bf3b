"""Who is trained on, who chooses the epoch, who is tested: folds and given splits, never through a person."""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from avfmae.console import console
from avfmae.data.clip import Clip
from avfmae.data.sources import MediaError, open_clip
from avfmae.stages.config import FinetuneConfig

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Split:
    """Clips of one fold."""

    name: str
    train: list[Clip]
    val: list[Clip]
    test: list[Clip]


def units(clips: Sequence[Clip]) -> dict[int, str]:
    """Clip id -> what must not be torn apart: a subject, or, of nobody known, the recording that the clip is a part of."""
    firsts: dict[str, str] = {}
    return {c.id: c.subject or firsts.setdefault(recording(c), f"clip {c.id}") for c in clips}


def recording(clip: Clip) -> str:
    """The path of the file that a clip lies in; of a prepared clip, that it was made of, if the set is there to tell."""
    with suppress(MediaError):
        if (stored := open_clip(clip).stored) is not None:
            return stored.get("source") or clip.path
    return clip.path


def fold_of(clips: Sequence[Clip], folds: int | str) -> dict[int, int]:
    """Clip id -> fold. Subjects in sorted order are cut into runs, of clips without a subject each recording is its own.

    The runs are those of the published folds of CREMA-D (91 actors: 18, 18, 18, 18, 19) and RAVDESS. ``"loso"``: one subject a
    fold. ``"given"``: the manifest's fold column.
    """
    if folds == "given":
        if bare := [c.path for c in clips if c.fold is None]:
            raise ValueError(f"folds: 'given' needs a fold for every clip; {len(bare)} have none ({bare[0]})")
        names = sorted({c.fold or "" for c in clips}, key=lambda name: (len(name), name))
        return {c.id: names.index(c.fold or "") for c in clips}
    of = units(clips)
    subjects = sorted(set(of.values()), key=lambda s: (len(s), s))
    if folds == "loso":
        if any(c.subject is None for c in clips):
            raise ValueError("folds: 'loso' needs a subject for every clip")
        folds = len(subjects)
    if not 2 <= (count := int(folds)) <= len(subjects):
        raise ValueError(f"folds: got {folds}, expected 2 to {len(subjects)}, the number of subjects")
    number = {s: ((i + 1) * count - 1) // len(subjects) for i, s in enumerate(subjects)}
    return {c.id: number[of[c.id]] for c in clips}


def check_names(clips: Sequence[Clip], manifest: object) -> Counter[str]:
    """How many clips each split has. Raises ValueError where a name is train, val or test but for spaces or capitals."""
    for clip in clips:
        if (plain := (clip.split or "").strip().lower()) in SPLITS and clip.split != plain:
            raise ValueError(f"{manifest}, row {clip.id + 1}: split is {clip.split!r}, expected {plain!r}")
    return Counter(clip.split for clip in clips if clip.split)


def make_splits(clips: Sequence[Clip], run: FinetuneConfig) -> list[Split]:
    """The folds or the given split; held-out clips come from a split called ``val``, else from the training subjects."""
    if run.folds is not None:
        fold = fold_of(clips, run.folds)
        numbers = sorted(set(fold.values()))
        if run.only_fold is not None and run.only_fold not in numbers:
            raise ValueError(f"only_fold: got {run.only_fold}, expected 0 to {numbers[-1]}")
        splits = [
            Split(f"fold {k}", [c for c in clips if fold[c.id] != k], [], [c for c in clips if fold[c.id] == k])
            for k in numbers
            if run.only_fold in (None, k)
        ]
    else:
        by = {name: [c for c in clips if c.split == name] for name in SPLITS}
        found = check_names(clips, run.manifest)
        if not by["train"] or not by["test"]:
            has = f"it has {', '.join(found)}" if found else "it has none, or nothing is in it"
            raise ValueError(f"{run.manifest}: its split column needs 'train' and 'test', {has}; or set folds")
        for name in sorted(found.keys() - set(SPLITS)):
            console.print(f"{run.manifest}: {found[name]} clips of split {name!r} are left out", highlight=False)
        if unnamed := len(clips) - found.total():
            console.print(f"{run.manifest}: {unnamed} clips without a split are left out", highlight=False)
        splits = [Split("split", by["train"], by["val"], by["test"])]
    return [hold_out(split, run) for split in splits]


def hold_out(split: Split, run: FinetuneConfig) -> Split:
    """The split with some training subjects moved to ``val``, unless it has held-out clips already."""
    of = units(split.train)
    subjects = sorted(set(of.values()))
    if split.val or run.val_share <= 0 or len(subjects) < 2:
        return split
    rng = np.random.Generator(np.random.Philox(key=[run.seed, 0]))
    held = set(rng.permutation(subjects)[: max(1, round(run.val_share * len(subjects)))])
    if len(held) == len(subjects):
        raise ValueError(
            f"val_share: got {run.val_share}, which leaves none of the {len(subjects)} training subjects to train on"
        )
    return Split(
        split.name, [c for c in split.train if of[c.id] not in held], [c for c in split.train if of[c.id] in held], split.test
    )
