"""Stage 2, progressive semantics injection (§3.5): supervised post-pre-training on several labelled sets.

The sets are merged through a label map into one hybrid label space. The second stage must know nothing of the clips and
subjects that the target's evaluation holds out, so it is told what these are, and refuses to train on them.
"""

import tomllib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from avfmae.console import console
from avfmae.data.clip import Clip, dataset_key
from avfmae.data.manifest import read_manifest
from avfmae.files import write_json
from avfmae.recipes import recipe_folder
from avfmae.stages.config import HeldOut, PSIConfig
from avfmae.stages.finetune import SupervisedStage, labelled
from avfmae.stages.leaks import refuse_leaks
from avfmae.stages.splits import Split, check_names, fold_of
from avfmae.tasks.classification import Classification
from avfmae.tasks.results import summarise
from avfmae.training.dist import processes


@dataclass(frozen=True)
class LabelMap:
    """Labels of several data sets in one space.

    Attributes:
        classes: the hybrid labels in index order.
        sources: data set name -> {its label: hybrid label}.
        smoothing: data set name -> its label smoothing, where it is not the run's.
    """

    classes: tuple[str, ...]
    sources: dict[str, dict[str, str]]
    smoothing: dict[str, float] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "LabelMap":
        """From TOML: ``classes = [...]``, ``[map.NAME]`` tables and perhaps ``[smoothing] NAME = 0.2``.

        An empty hybrid label leaves that source label out.

        Raises:
            FileNotFoundError, ValueError: with file and key.
        """
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such label map")
        try:
            table = tomllib.loads(path.read_text())
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{path}: is no TOML ({error})") from error
        if unknown := sorted(set(table) - {"classes", "map", "smoothing"}):
            raise ValueError(f"{path}: unknown key {unknown[0]!r}; known are classes, map, smoothing")
        classes, sources = tuple(table.get("classes", ())), table.get("map", {})
        if not classes or not sources:
            raise ValueError(f"{path}: needs 'classes' and at least one [map.NAME]")
        for name, labels in sources.items():
            for label, hybrid in labels.items():
                if hybrid and hybrid not in classes:
                    raise ValueError(
                        f"{path}: [map.{name}] {label} = {hybrid!r}, which is none of the classes {', '.join(classes)}"
                    )
        smoothing = table.get("smoothing", {})
        for name, rate in smoothing.items():
            if name not in sources or not isinstance(rate, int | float) or not 0 <= rate < 1:
                raise ValueError(
                    f"{path}: [smoothing] {name} = {rate!r}, expected a share below 1 of a data set that has a [map]"
                )
        return cls(classes, sources, smoothing)

    def hybrid(self, clip: Clip, manifest: Path) -> tuple[str | None, str]:
        """The hybrid label of a clip, or None where the map leaves it out; and its source (crema-d and CREMA_D are the same)."""
        name, known = clip.dataset or manifest.stem, {dataset_key(source): source for source in self.sources}
        if (source := known.get(dataset_key(name))) is None:
            raise ValueError(
                f"{manifest}, row {clip.id + 1}: data set {name!r} has no [map.{name}]; there are {', '.join(self.sources)}"
            )
        labels = self.sources[source]
        if clip.label not in labels:
            raise ValueError(
                f"{manifest}, row {clip.id + 1}: label {clip.label!r} is not in [map.{source}], which has {', '.join(labels)}"
            )
        return labels[clip.label] or None, source


def merge(manifests: Sequence[Path], label_map: LabelMap) -> tuple[list[Clip], dict[int, str]]:
    """All sources' labelled clips with hybrid labels, numbered anew, and each one's source."""
    merged, sources = [], {}
    for manifest in manifests:
        clips = labelled(read_manifest(manifest), manifest)
        check_names(clips, manifest)
        for clip in clips:
            hybrid, source = label_map.hybrid(clip, Path(manifest))
            if hybrid is not None:
                sources[len(merged)] = source
                merged.append(replace(clip, id=len(merged), label=hybrid))
    return merged, sources


@dataclass(frozen=True)
class Hybrid(Classification):
    """Classification with a label smoothing of its own for some data sets. ``smoothing``: (data set, share)."""

    smoothing: tuple[tuple[str, float], ...] = ()

    def target(self, clip: Clip) -> list[float]:
        """The class, and the clip's smoothing, or -1 for the run's."""
        return [self.number(clip), dict(self.smoothing).get(clip.dataset or "", -1.0)]

    def targets(self, labels: Tensor, smoothing: float) -> Tensor:
        """(B, 2) of :meth:`target` -> (B, classes) shares."""
        rate = torch.where(labels[:, 1:] < 0, smoothing, labels[:, 1:]).float()
        return F.one_hot(labels[:, 0].long(), self.outputs) * (1 - rate) + rate / self.outputs


def held_out_clips(held: HeldOut) -> list[Clip]:
    """The target's clips that the second stage must not see."""
    if held.manifest is None:
        return []
    clips = read_manifest(held.manifest)
    if held.folds is not None:
        clips = labelled(clips, held.manifest)  # as fine-tuning cuts them
        fold = fold_of(clips, held.folds)
        if held.fold not in fold.values():
            raise ValueError(f"held_out.fold: got {held.fold}, expected 0 to {max(fold.values())}")
        return [c for c in clips if fold[c.id] == held.fold]
    check_names(clips, held.manifest)
    found = [c for c in clips if c.split == held.split]
    if not found:
        raise ValueError(f"held_out: {held.manifest} has no clip of split {held.split!r}")
    return found


def balance(clips: Sequence[Clip], sources: dict[int, str], temperature: float) -> list[float]:
    """Sampling weights of the clips with which a source of n clips comes as often as n^temperature says."""
    counts = Counter(sources[c.id] for c in clips)
    return [counts[sources[c.id]] ** (temperature - 1) for c in clips]


def sets_of(run: PSIConfig) -> tuple[LabelMap, list[Clip], dict[int, str]]:
    """The label map, and what :func:`merge` makes of the sets by it."""
    if not run.manifests:
        raise ValueError("manifests: none is set")
    path = run.label_map or recipe_folder() / "label_map.toml"
    label_map = LabelMap.read(path if path.is_file() else recipe_folder() / path)
    return label_map, *merge(run.manifests, label_map)


def psi(run: PSIConfig) -> Path:
    """Runs or continues the stage. Returns the weights, ``out/weights.safetensors``; ``classes.json`` beside them says that it is
    done."""
    label_map, merged, sources = sets_of(run)
    clips = refuse_leaks(merged, held_out_clips(run.held_out), run.held_out.on_leak)
    if label_map.smoothing:
        clips = [replace(c, dataset=sources[c.id]) for c in clips]
    split = Split("hybrid", [c for c in clips if c.split not in ("val", "test")], [c for c in clips if c.split == "val"], [])
    if not split.train:
        raise ValueError("manifests: no clip is left to train on")
    if run.held_out.manifest is None:
        console.print("held_out is not set: nothing keeps the target's test clips out of this stage", style="yellow")
    with processes() as dist:
        smoothing = tuple(label_map.smoothing.items())
        task = Hybrid(label_map.classes, smoothing) if smoothing else Classification(label_map.classes)
        weights = None if run.temperature == 1 else balance(split.train, sources, run.temperature)
        stage = SupervisedStage(run, dist, task, split, f"PSI {run.preset}", weights)
        history = stage.trainer.fit()
        if dist.is_main and stage.trainer.state.step == stage.trainer.steps:
            write_json(Path(run.out) / "classes.json", label_map.classes)
            results = None
            if split.val:
                folds = {"val": {"last": {"epoch": history[-1]["epoch"], **history[-1]["val"]}}}
                results = {"task": task.name, **task.about(), "folds": folds, "summary": summarise(task, folds)}
            from avfmae.viz.pages import stage_report

            stage_report(run.out, "PSI", run.preset, run.manifests, results=results)
        dist.barrier()
    return Path(run.out) / "weights.safetensors"
