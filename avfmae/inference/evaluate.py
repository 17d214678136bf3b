"""A fine-tuned model on one's own videos: a prediction for every clip, and metrics of those that have labels."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from avfmae.checkpoints import weights_file
from avfmae.console import say
from avfmae.data.clip import Clip
from avfmae.data.config import DataConfig, Preparation
from avfmae.data.cropping import seen_by_training, with_a_detector, with_time_for_faces
from avfmae.data.dataset import ClipDataset
from avfmae.data.manifest import is_manifest, listed, read_columns
from avfmae.files import check_writable
from avfmae.inference.finetuned import load_finetuned
from avfmae.inference.predictions import Predictions, predict, write_predictions
from avfmae.options import EvaluateConfig
from avfmae.tasks.groups import largest_gaps, metrics_of_groups
from avfmae.tasks.interface import Task
from avfmae.training.dist import processes
from avfmae.training.precision import compute_dtype


def evaluate(run: EvaluateConfig) -> list[dict]:
    """Prints or writes a row a clip, and prints the metrics of those with labels; processes of torchrun share the clips.

    Returns:
        The rows; none where this is not the main process.

    Raises:
        ValueError: single videos could not be read. The others' rows are written by then.
    """
    for out, is_folder in ((run.out, False), (run.report, True)):
        if out is not None:
            check_writable(out, is_folder)
    with processes() as dist:
        tuned = load_finetuned(weights_file(run.weights))
        model, task, clips = tuned.model.to(dist.device), tuned.task, find_clips(run)
        columns = columns_of_groups(run)
        given = {name: getattr(run, name) for name in ("segments", "crops", "missing_audio", "workers")}
        data = replace(tuned.data, **{name: value for name, value in given.items() if value is not None})
        how, words = as_trained(clips, data, tuned.preparation, run)
        data = data if how is None else with_time_for_faces(data)
        dataset = ClipDataset(clips, model.cfg, data, "evaluate", preparation=how)
        mine, dtype = range(dist.rank, len(clips), dist.world), compute_dtype(tuned.precision, dist.device)
        with torch.autocast(dist.device.type, dtype, enabled=dtype != torch.float32):
            found = predict(model, dataset, mine, 1, dist.device).gathered(dist)
        if not found.outputs:
            raise ValueError(f"none of the {len(clips)} clips can be read; the first: {found.bad[0].path}: {found.bad[0].reason}")
        if not dist.is_main:
            return []
        for word in (*words, *(f"cannot read {b.path}: {b.reason}" for b in found.bad)):
            say(word)
        rows = found.rows(task, clips)
        write_predictions(rows, run.out)
        if any(clip.label is not None for clip in clips):
            splits = scored(task, clips, found.outputs, run)
            print_metrics(task, splits, found.outputs)
            if columns:
                report_groups(task, splits, clips, found, columns, run.report)
        if found.bad and not is_manifest(run.clips):
            raise ValueError(f"{len(found.bad)} of {len(clips)} clips could not be read")
        return rows


def find_clips(run: EvaluateConfig) -> Sequence[Clip]:
    """The manifest's clips, of the split that is asked for, or the videos.

    Raises:
        ValueError: there is no such split.
    """
    clips = listed(run.clips)
    if run.split is None:
        return clips
    if not is_manifest(run.clips):
        raise ValueError(f"split: got {run.split!r}, but the clips are videos; expected a manifest")
    if not (found := [clip for clip in clips if clip.split == run.split]):
        splits = ", ".join(sorted({repr(clip.split) for clip in clips if clip.split})) or "none"
        raise ValueError(f"split: got {run.split!r}, which no clip of {run.clips[0]} has; its splits are {splits}")
    return found


def as_trained(
    clips: Sequence[Clip], data: DataConfig, how: Preparation | None, run: EvaluateConfig
) -> tuple[Preparation | None, list[str]]:
    """How raw clips are cut to faces, as far as it can be done here, and what the user is told of it."""
    _, ways = seen_by_training(clips, data)
    if how is None or not run.find_faces:
        return None, []
    cut = [way for way in ways if way is not None and way.size is not None]
    words = [f"clips show {way}; the model was trained on {how}" for way in cut if str(way) != str(how)]
    if cut and len(cut) == len(ways):
        return how, words
    how, word = with_a_detector(how, run.yunet and str(run.yunet))
    return how, [*words, f"raw clips are cut as in training: {how}", *([] if word is None else [word])]


def scored(
    task: Task, clips: Sequence[Clip], outputs: dict[int, np.ndarray], run: EvaluateConfig
) -> dict[str | None, list[Clip]]:
    """The clips that are scored, by split; says which clips are left out."""
    splits: dict[str | None, list[Clip]] = {}
    left_out: Counter[str] = Counter()
    for clip in clips:
        if clip.label is None:
            left_out["no label"] += 1
            continue
        try:
            task.target(clip)
        except ValueError as error:
            left_out[str(error)] += 1
            continue
        if clip.id in outputs:
            splits.setdefault(clip.split, []).append(clip)
    for reason, count in left_out.most_common(8):
        say(f"{count} of {len(clips)} clips are not scored: {reason}")
    if len(splits) > 1:
        counts = ", ".join(f"{name or 'none'} ({len(some)} clips)" for name, some in splits.items())
        say(f"{run.clips[0]} has the splits {counts}; each is scored by itself (--split NAME: one alone)")
    return splits


def print_metrics(task: Task, splits: dict[str | None, list[Clip]], outputs: dict[int, np.ndarray]) -> None:
    """Of every split by itself."""
    for name, some in splits.items():
        values = task.metrics(some, np.array([outputs[clip.id] for clip in some]))
        title = "" if name is None and len(splits) == 1 else f"{name or 'no split'}: "
        say(title + "  ".join(f"{metric} {value:.4f}" for metric, value in values.items() if isinstance(value, float)))
        if recall := values.get("recall"):
            say("recall:  " + "  ".join(f"{c} {v:.4f}" for c, v in recall.items() if v is not None))


def columns_of_groups(run: EvaluateConfig) -> dict[str, list[str | None]]:
    """The columns of ``by``, a value for each row of the manifest.

    Raises:
        ValueError: there is no manifest, or a column is missing.
    """
    if run.by and not is_manifest(run.clips):
        raise ValueError(f"by: got {run.by[0]!r}, but the clips are videos; expected a manifest with that column")
    return read_columns(run.clips[0], run.by) if run.by else {}


def report_groups(
    task: Task, splits: dict[str | None, list[Clip]], clips: Sequence[Clip], found: Predictions,
    columns: dict[str, list[str | None]], folder: Path | None,
) -> None:  # fmt: skip
    """Prints the metrics of groups of clips, and writes them."""
    from avfmae.viz.groups import print_groups, write_groups

    unread = {bad.id for bad in found.bad}
    no_face = {i for i, flags in found.flags.items() if "no-face" in flags.split()}
    reports = []
    for split, some in splits.items():
        lost = [clip for clip in clips if clip.id in unread and clip.split == split]
        for name, values in columns.items():
            outputs = np.array([found.outputs[clip.id] for clip in some])
            groups = metrics_of_groups(task, some, outputs, [values[clip.id] for clip in some])
            for group in groups:
                group["unread"] = sum(values[clip.id] == group["group"] for clip in lost)
                group["no_face"] = sum(values[clip.id] == group["group"] and clip.id in no_face for clip in some)
            for group in {values[clip.id] for clip in lost} - {group["group"] for group in groups}:
                say(f"{name} {group or '(none)'}: none of its clips can be read")
            reports.append({"split": split, "column": name, "groups": groups, "gaps": largest_gaps(groups)})
    for report in reports:
        print_groups(report, task.select)
    if folder is not None:
        write_groups(reports, task.select, folder)
        say(f"{folder}: groups.json, groups.csv and pictures")
