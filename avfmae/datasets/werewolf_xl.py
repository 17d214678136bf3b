"""Werewolf-XL (Zhang et al., 2021): 30 games of Werewolf, players rated in three dimensions."""

import re
from collections.abc import Iterator
from math import isfinite
from pathlib import Path

from avfmae.data.clip import Clip
from avfmae.datasets.interface import Dataset, Options
from avfmae.datasets.reading import first_existing, lines, videos_by_stem

DIMENSIONS = ("arousal", "valence", "dominance")
NAME = re.compile(r"(?:^|.*/)(\d\d)_(\d\d)_\d+$")  # game, player, clip
NUMBER = re.compile(r"[-+]?[\d.]+")


def read(root: Path, options: Options) -> Iterator[Clip]:
    path = options.annotation or first_existing(root, "*.csv", "*.txt")
    videos = videos_by_stem(root)
    order: tuple[str, ...] = options.classes  # of the three numbers
    for number, line in enumerate(lines(path), 1):
        name, *cells = [cell for cell in re.split(r"[\s,;]+", line) if cell]
        if number == 1 and set(DIMENSIONS) <= {cell.lower() for cell in cells}:
            order = tuple(cell.lower() for cell in cells[-3:])
            continue
        found = NAME.match(name.removesuffix(".mp4"))
        values = cells[-3:]  # a path of the sound may stand before them
        try:
            finite = all(map(isfinite, map(float, values)))
        except ValueError:
            found = None
        if not found or len(values) < 3 or any(map(NUMBER.fullmatch, cells[:-3])):
            raise ValueError(f"{path}, line {number}: got {line!r}, expected <game_player_clip> and three numbers")
        if set(order) != set(DIMENSIONS):
            raise ValueError(
                f"classes: got {', '.join(order) or 'none'}, expected the order of the three numbers of {path}, such as "
                f"{' '.join(DIMENSIONS)}: no document says which it is"
            )
        by_name = dict(zip(order, values, strict=True))
        label = " ".join(by_name[dimension] for dimension in options.classes or DIMENSIONS)
        game, player = found.groups()
        stem = Path(name.removesuffix(".mp4")).name
        video, fold = videos.get(stem, str(root / f"{stem}.mp4")), str((int(game) - 1) // 6 + 1)
        if finite:
            yield Clip(0, video, label=label, fold=fold, subject=f"{game}_{player}")
        else:
            options.notes.append((video, f"its numbers are {' '.join(values)} ({path}, line {number})"))


DATASETS = (
    Dataset(
        name="werewolf-xl",
        title="Werewolf-XL",
        corpus="werewolf-xl",
        task="regression",
        protocol="5 folds of 6 consecutive games, mean over folds",
        tree="*.csv, *.txt or --annotation FILE: lines '28_03_177 1.0 0.25 0.5' in the order that --classes\n"
        "says, or below a header that names the dimensions\n"
        "**/28_03_177.mp4",
        licence="research only, by agreement",
        source="the authors (Zhang et al., IEEE Transactions on Affective Computing, 2021)",
        read=read,
        classes=DIMENSIONS,
        metrics=("PCC", "CCC"),
        clips=14_632,
    ),
)
