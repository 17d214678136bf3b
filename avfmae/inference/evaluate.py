"""A fine-tuned model on one's own videos: predictions a clip, and metrics where there are labels."""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from avfmae.checkpoints import load_released, read_about
from avfmae.data.batch import Bad
from avfmae.data.clip import Clip
from avfmae.data.config import DataConfig
from avfmae.data.dataset import ClipDataset
from avfmae.data.loader import loader
from avfmae.data.manifest import MANIFESTS, read_manifest
from avfmae.data.preprocess import preprocess
from avfmae.files import printable, write_rows
from avfmae.models.finetuning import AVFMAEForFinetuning
from avfmae.options import EvaluateConfig
from avfmae.tasks import task_class
from avfmae.tasks.interface import Task


def load_finetuned(weights: Path) -> tuple[AVFMAEForFinetuning, Task, DataConfig]:
    """The model of a fine-tuning's ``weights.safetensors``, its task, and how it reads clips."""
    about = read_about(weights)
    if "task" not in about:
        raise ValueError(f"{weights}: is not the result of a fine-tuning; it carries no task")
    with safe_open(weights, "pt") as file:
        outputs = len(file.get_tensor("head.bias"))
    model = AVFMAEForFinetuning(about["config"], outputs, about["task"], about["modalities"])
    load_released(model, weights)
    return model.eval(), task_class(about["task"]).of_weights(about, outputs), DataConfig(**about.get("data", {}))


@torch.no_grad()
def predict(
    model: AVFMAEForFinetuning, dataset: ClipDataset, positions: Sequence[int], clips_a_pass: int, device: torch.device
) -> tuple[dict[int, np.ndarray], list[Bad]]:
    """Outputs (outputs,) averaged over views, by clip id, and the clips that cannot be read. ``positions``: in the dataset."""
    model.eval()
    batches = [[(0, i) for i in positions[k : k + clips_a_pass]] for k in range(0, len(positions), clips_a_pass)]
    outputs, bad = {}, []
    for batch in loader(dataset, batches, min(dataset.data.workers, len(batches))):
        bad += batch.bad
        if batch.clips:
            batch = preprocess(batch.to(device), model.cfg)
            logits = model(batch.video, batch.audio).logits.float()
            means = logits.unflatten(0, (-1, batch.views)).mean(1).cpu().numpy()
            outputs |= dict(zip(batch.clips, means, strict=True))
    return outputs, bad


def evaluate(run: EvaluateConfig) -> list[dict]:
    """Prints or writes a row a clip; then metrics if every clip has a label that fits the task."""
    model, task, data = load_finetuned(run.weights)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    if len(run.clips) == 1 and run.clips[0].suffix.lower() in MANIFESTS:
        listed = read_manifest(run.clips[0])
    else:
        listed = [Clip(i, str(path)) for i, path in enumerate(run.clips)]
    data = replace(data, **{name: getattr(run, name) for name in ("segments", "crops", "missing_audio", "workers")})
    dataset = ClipDataset(listed, model.cfg, data, "evaluate", modalities=model.modalities)
    outputs, bad = predict(model, dataset, range(len(listed)), 1, device)
    for b in bad:
        print(printable(f"cannot read {b.path}: {b.reason}"), file=sys.stderr)
    if not outputs:
        raise ValueError(f"none of the {len(listed)} clips can be read")
    read = [clip for clip in listed if clip.id in outputs]
    rows = [task.prediction(clip, outputs[clip.id]) for clip in read]
    with open(run.out, "w", newline="", errors="surrogateescape") if run.out else nullcontext(sys.stdout) as file:
        write_rows(file, list(rows[0]), rows)
    if any(c.label is None for c in read):
        return rows
    try:
        for clip in read:
            task.target(clip)
    except ValueError:  # labels of another task
        return rows
    values = task.metrics(read, np.array([outputs[c.id] for c in read]))
    print("  ".join(f"{name} {value:.4f}" for name, value in values.items() if isinstance(value, float)), file=sys.stderr)
    if recall := values.get("recall"):
        print("recall:  " + "  ".join(f"{c} {v:.4f}" for c, v in recall.items() if v is not None), file=sys.stderr)
    return rows
