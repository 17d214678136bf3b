"""``avfmae features`` and ``avfmae.FeatureExtractor``: what a pre-trained or fine-tuned model's encoders make of clips."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import safetensors.numpy
import torch
from torch import Tensor

from avfmae.checkpoints import read_about, weights_file
from avfmae.console import console, say
from avfmae.data.batch import Bad
from avfmae.data.clip import Clip
from avfmae.data.config import DataConfig, Preparation
from avfmae.data.cropping import with_a_detector, with_time_for_faces
from avfmae.data.dataset import ClipDataset
from avfmae.data.loader import loader
from avfmae.data.manifest import is_manifest, listed
from avfmae.data.preprocess import preprocess
from avfmae.files import atomic_write, check_writable, printable, write_table
from avfmae.inference.finetuned import load_finetuned
from avfmae.models.finetuning import AVFMAEForFinetuning, weighted_layers
from avfmae.models.pretraining import AVFMAEForPretraining
from avfmae.options import FeaturesConfig

Level = Literal["clip", "region", "token"]
FORMATS = (".safetensors", ".npz", ".parquet")


@dataclass
class Extracted:
    """Features of clips.

    Attributes:
        clips: those that were read. arrays: by modality, (clips, ...) float32. bad: those that cannot be read. flags: what
            is odd about clips, by place among those that were given.
    """

    clips: list[Clip] = field(default_factory=list)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    bad: list[Bad] = field(default_factory=list)
    flags: dict[int, str] = field(default_factory=dict)


class FeatureExtractor:
    """Gives the encoders' features of clips, the same ones alone, in batches, and with any number of workers.

    Args:
        model: pre-trained or fine-tuned. data: how clips are read. preparation: how raw clips are cut to faces.
        level: ``"clip"``: (C,) a modality; ``"region"``: (J, C), as many as the encoder has regions; one where it has none;
            ``"token"``: (N, C), the last block's, in raster order; of a pyramid, the sum of its stages.
        layers: of which blocks, from 0, or from -1 backwards; of several, features stand one after the other in the last axis.
        learned: all blocks, weighed as the fine-tuned model does (eq. 8), in place of ``layers``.
        pool: over regions, of level ``"clip"``: ``"mean"`` or ``"max"``.
        batch: clips in one pass. device: None: a GPU if there is one.

    Raises:
        ValueError: an option does not fit the model.
    """

    def __init__(
        self, model: AVFMAEForFinetuning | AVFMAEForPretraining, data: DataConfig, preparation: Preparation | None = None, *,
        level: Level = "clip", layers: Sequence[int] = (-1,), learned: bool = False, pool: Literal["mean", "max"] = "mean",
        batch: int = 8, device: str | None = None,
    ):  # fmt: skip
        depth = model.cfg.depth
        if wrong := [layer for layer in layers if not -depth <= layer < depth]:
            raise ValueError(f"layers: got {wrong[0]}, expected numbers from 0 to {depth - 1}, or from -1 backwards")
        if not layers and not learned:
            raise ValueError("layers: got none, expected at least one")
        if level == "token" and (learned or tuple(layers) not in ((-1,), (depth - 1,))):
            raise ValueError("layers: level 'token' has the last block's alone")
        if learned and not hasattr(model, "video_layer_weights"):
            raise ValueError("learned: the model has no learnt layer weights, which fine-tuning of both modalities gives")
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model, self.data, self.preparation = model.eval().to(self.device), data, preparation
        self.level, self.layers, self.learned, self.pool, self.batch = level, list(layers), learned, pool, batch

    @classmethod
    def from_pretrained(cls, path: str | Path, **options: Any) -> "FeatureExtractor":
        """Of a training run's weights, or its folder.

        Raises:
            FileNotFoundError, ValueError: there is no model, or an option does not fit it.
        """
        path = weights_file(path)
        about = read_about(path)
        if "task" in about:
            tuned = load_finetuned(path)
            return cls(tuned.model, tuned.data, tuned.preparation, **options)
        model = AVFMAEForPretraining.from_pretrained(path)
        return cls(model, DataConfig(**about.get("data", {})), Preparation.of(about.get("preparation")), **options)

    def __call__(self, clips: Sequence[Clip | str | Path], segments: int = 1, workers: int = 0) -> Extracted:
        """Features of clips; of several windows, spread over a clip by ``segments``, the mean.

        Args:
            workers: decoding processes; 0: clips are read here, unwatched.
        """
        given = [clip if isinstance(clip, Clip) else Clip(i, str(clip)) for i, clip in enumerate(clips)]
        numbered = [replace(clip, id=i) for i, clip in enumerate(given)]  # clips of several manifests share their numbers
        result, parts = Extracted(), []
        for ids, arrays in self.passes(numbered, segments, workers, result):
            result.clips += [given[i] for i in ids]
            parts.append(arrays)
        result.bad = [replace(bad, id=given[bad.id].id) for bad in result.bad]
        result.arrays = {name: np.concatenate([part[name] for part in parts]) for name in (parts[0] if parts else ())}
        return result

    def passes(
        self, clips: Sequence[Clip], segments: int, workers: int, result: Extracted
    ) -> Iterator[tuple[list[int], dict[str, np.ndarray]]]:
        """(clip ids, features) of one batch after the other; notes in ``result`` what is bad or odd."""
        missing = "silence" if "video" in self.model.cfg.modalities else "error"
        data = replace(self.data, segments=segments, crops=1, missing_audio=missing, workers=workers)
        how = None if self.preparation is None else with_a_detector(self.preparation, None)[0]
        data = data if how is None else with_time_for_faces(data)
        dataset = ClipDataset(clips, self.model.cfg, data, "evaluate", preparation=how)
        waiting = []
        # Clips are cropped one by one, as how a batch is cropped depends on whether all of it has one size.
        for number, batch in enumerate(loader(dataset, ([(0, i)] for i in range(len(clips))), min(workers, len(clips)))):
            result.bad += batch.bad
            result.flags |= batch.flags
            if batch.clips:
                waiting.append(preprocess(batch.to(self.device), self.model.cfg))
            if waiting and (len(waiting) == self.batch or number == len(clips) - 1):
                yield [b.clips[0] for b in waiting], self.encode(waiting, segments)
                waiting = []

    @torch.no_grad()
    def encode(self, batches: list, segments: int) -> dict[str, np.ndarray]:
        """By modality, (B, ...) of batches of one clip each."""
        found = {}
        for name in ("video", "audio"):
            encoder = getattr(self.model, f"{name}_encoder", None)
            if encoder is not None and getattr(batches[0], name) is not None:
                features = self.features(encoder, torch.cat([getattr(batch, name) for batch in batches]), name)
                found[name] = features.float().unflatten(0, (-1, segments)).mean(1).cpu().numpy()
        return found

    def features(self, encoder: Any, clip: Tensor, name: str) -> Tensor:
        """(B, ...) of one modality."""
        if self.level == "token":
            places = torch.arange(getattr(self.model.cfg, name).tokens, device=clip.device).expand(len(clip), -1)
            tokens, _, index = encoder.encode_visible(clip, places)
            return torch.zeros_like(tokens).scatter(1, index[..., None].expand_as(tokens), tokens)
        before, encoder.needs_levels = encoder.needs_levels, True
        levels = encoder.encode_all(clip).levels  # (B, J, L, C)
        encoder.needs_levels = before
        if self.learned:
            chosen = weighted_layers(levels, getattr(self.model, f"{name}_layer_weights"))
        else:
            chosen = levels[:, :, self.layers].flatten(2)
        if self.level == "region":
            return chosen
        return chosen.mean(1) if self.pool == "mean" else chosen.amax(1)


def features(run: FeaturesConfig) -> Extracted:
    """Extracts, says which clips cannot be read, and writes.

    Raises:
        ValueError: no clip can be read, or a single video cannot. The others are written by then.
    """
    if run.out.suffix not in FORMATS:
        raise ValueError(f"out: got {run.out}, expected a file of {', '.join(FORMATS)}")
    check_writable(run.out)
    clips = listed(run.sources)
    options: Any = {name: getattr(run, name) for name in ("level", "layers", "learned", "pool", "batch")}
    result = FeatureExtractor.from_pretrained(run.model, **options)(clips, run.segments, run.workers)
    for bad in result.bad:
        say(f"cannot read {bad.path}: {bad.reason}")
    if not result.clips:
        raise ValueError(f"none of the {len(clips)} clips can be read")
    write_features(result, run.out)
    shapes = ", ".join(f"{name} {array.shape}" for name, array in result.arrays.items())
    console.print(f"{run.out}: {shapes}", highlight=False)
    if silent := sum("no-sound" in flags.split() for flags in result.flags.values()):
        say(f"{silent} of {len(clips)} clips have no sound: silence is heard")
    if result.bad and not is_manifest(run.sources):
        raise ValueError(f"{len(result.bad)} of {len(clips)} clips could not be read")
    return result


def write_features(result: Extracted, path: Path) -> None:
    """Writes arrays and, beside safetensors and npz, ``PATH.csv``, which tells each row's clip; Parquet has both in one."""
    rows = [{"path": printable(c.path), "start": c.start, "end": c.end, "label": c.label} for c in result.clips]
    if path.suffix == ".parquet":
        table = pa.Table.from_pylist(rows)
        for name, array in result.arrays.items():
            table = table.append_column(name, pa.array(list(array.reshape(len(array), -1))))
        shapes = json.dumps({name: array.shape[1:] for name, array in result.arrays.items()})
        with atomic_write(path) as temporary:
            pyarrow.parquet.write_table(table.replace_schema_metadata({"shapes": shapes}), temporary)
        return
    with atomic_write(path) as temporary:
        if path.suffix == ".npz":
            with open(temporary, "wb") as file:
                np.savez(file, **result.arrays)  # pyright: ignore[reportArgumentType]  an option of its own is not among them
        else:
            safetensors.numpy.save_file({n: np.ascontiguousarray(a) for n, a in result.arrays.items()}, temporary)
    write_table(path.with_suffix(path.suffix + ".csv"), list(rows[0]), rows)
