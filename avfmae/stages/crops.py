"""How a stage's clips are cut to faces, and what of reading them goes with the weights."""

import dataclasses
from collections.abc import Sequence
from contextlib import suppress

from avfmae.checkpoints import read_about
from avfmae.console import console
from avfmae.data.clip import Clip
from avfmae.data.config import Preparation
from avfmae.data.cropping import seen_by_training, with_a_detector
from avfmae.training.config import RunConfig


def preparation_of_run(run: RunConfig, clips: Sequence[Clip]) -> Preparation | None:
    """How the clips are cut: prepared ones as their set says, raw ones as those that ``run.init`` was trained on."""
    own, ways = seen_by_training(clips, run.data)
    if len(ways) > 1:
        console.print(
            f"the training clips show faces in {len(ways)} ways; the weights remember most clips' way: {own}", style="yellow"
        )
    if own is None or own.size is not None or run.init is None or not run.data.find_faces:
        return own
    with suppress(ValueError):  # released weights, which do not tell
        if (trained := Preparation.of(read_about(run.init).get("preparation"))) is not None:
            how, word = with_a_detector(trained, run.data.yunet)
            console.print(f"raw clips are cut as those of {run.init}: {how}", highlight=False)
            if word is not None:
                console.print(word, style="yellow", highlight=False)
            return how
    return own


def how_clips_were_read(run: RunConfig, how: Preparation | None) -> dict:
    """What evaluation and later stages are told of the training clips: sampling, views, crop, and what they were computed in."""
    return {"data": dataclasses.asdict(run.data), "preparation": how and dataclasses.asdict(how), "precision": run.precision}
