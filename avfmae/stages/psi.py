"""Stage 2, progressive semantics injection (§3.5): supervised post-pre-training on several labelled sets.

The sets are merged through a label map into one hybrid label space. The second stage must know nothing of the clips and
subjects that the target's evaluation holds out, so it is told what these are, and refuses to train on them.
"""

import json
import os
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from avfmae.console import console
from avfmae.data.clip import Clip
from avfmae.data.manifest import read_manifest
from avfmae.data.sources import open_clip
from avfmae.recipes import recipe_folder
from avfmae.stages.config import HeldOut, PSIConfig
from avfmae.stages.finetune import SupervisedStage, labelled
from avfmae.stages.splits import Split, fold_of
from avfmae.tasks.classification import Classification
from avfmae.tasks.results import summarise
from avfmae.training.dist import processes


@dataclass(frozen=True)
class LabelMap:
    """``classes``: the hybrid labels in index order; ``sources``: data set name -> {its label: hybrid label}."""

    classes: tuple[str, ...]
    sources: dict[str, dict[str, str]]

    @classmethod
    def read(cls, path: Path) -> "LabelMap":
        """From TOML: ``classes = [...]`` and ``[map.NAME]`` tables; an empty hybrid label leaves that source label out.

        Raises:
            FileNotFoundError, ValueError: with file and key.
        """
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such label map")
        try:
            table = tomllib.loads(path.read_text())
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"{path}: is no TOML ({error})") from error
        if unknown := sorted(set(table) - {"classes", "map"}):
            raise ValueError(f"{path}: unknown key {unknown[0]!r}; known are classes, map")
        classes, sources = tuple(table.get("classes", ())), table.get("map", {})
        if not classes or not sources:
            raise ValueError(f"{path}: needs 'classes' and at least one [map.NAME]")
        for name, labels in sources.items():
            for label, hybrid in labels.items():
                if hybrid and hybrid not in classes:
                    raise ValueError(
                        f"{path}: [map.{name}] {label} = {hybrid!r}, which is none of the classes {', '.join(classes)}"
                    )
        return cls(classes, sources)

    def hybrid(self, clip: Clip, manifest: Path) -> str | None:
        """The hybrid label of a clip, or None where the map leaves it out."""
        name = clip.dataset or manifest.stem
        if name not in self.sources:
            raise ValueError(
                f"{manifest}, row {clip.id + 1}: data set {name!r} has no [map.{name}]; there are {', '.join(self.sources)}"
            )
        labels = self.sources[name]
        if clip.label not in labels:
            raise ValueError(
                f"{manifest}, row {clip.id + 1}: label {clip.label!r} is not in [map.{name}], which has {', '.join(labels)}"
            )
        return labels[clip.label] or None


def merge(manifests: Sequence[Path], label_map: LabelMap) -> list[Clip]:
    """All sources' labelled clips with hybrid labels, numbered anew."""
    merged = []
    for manifest in manifests:
        for clip in labelled(read_manifest(manifest), manifest):
            hybrid = label_map.hybrid(clip, Path(manifest))
            if hybrid is not None:
                merged.append(replace(clip, id=len(merged), label=hybrid))
    return merged


def held_out_clips(held: HeldOut) -> list[Clip]:
    """The target's clips that the second stage must not see."""
    if held.manifest is None:
        return []
    clips = read_manifest(held.manifest)
    if held.folds is not None:
        fold = fold_of(clips, held.folds)
        return [c for c in clips if fold[c.id] == held.fold]
    found = [c for c in clips if c.split == held.split]
    if not found:
        raise ValueError(f"held_out: {held.manifest} has no clip of split {held.split!r}")
    return found


@cache
def _digest(path: str) -> str | None:
    return open_clip(path).digest()


def leaks(clips: Sequence[Clip], held: Sequence[Clip]) -> dict[int, str]:
    """Which clips the target holds out: clip id -> why. By path, by content (a copy under another name), or by subject.

    A subject is the same where its name is, unless both clips name their data sets and these differ.
    """
    paths = {os.path.realpath(c.path) for c in held}
    # Files of different sizes are not copies. Where a size is not known (of prepared clips), files are compared by digest alone.
    sizes_known = all(open_clip(c.path).size_hint() is not None for c in (*held, *clips))

    def size(clip: Clip) -> int | None:
        return open_clip(clip.path).size_hint() if sizes_known else None

    same_size: dict[int | None, list[str]] = {}  # the held-out paths
    for c in held:
        same_size.setdefault(size(c), []).append(c.path)
    digests_of = cache(lambda size: {_digest(path) for path in same_size.get(size, ())} - {None})
    datasets: dict[str, set[str | None]] = {}  # of every held-out subject
    for c in held:
        if c.subject is not None:
            datasets.setdefault(c.subject, set()).add(c.dataset)
    found = {}
    for c in clips:
        if os.path.realpath(c.path) in paths:
            found[c.id] = f"{c.path} is a held-out clip"
        elif (sets := datasets.get(c.subject)) and (c.dataset is None or sets & {None, c.dataset}):
            found[c.id] = f"{c.path}: subject {c.subject} is held out"
        elif (held_out := digests_of(size(c))) and _digest(c.path) in held_out:
            found[c.id] = f"{c.path} is a copy of a held-out clip, or made of its file"
    return found


def refuse_leaks(clips: list[Clip], held: HeldOut) -> list[Clip]:
    """The clips without those that the target holds out.

    Raises:
        ValueError: there are such clips and ``on_leak`` is ``refuse``; lists them.
    """
    found = leaks(clips, held_out_clips(held))
    if found and held.on_leak == "refuse":
        shown = "\n  ".join(list(found.values())[:5])
        raise ValueError(
            f"held_out: {len(found)} of {len(clips)} clips belong to the target's evaluation (on_leak = 'exclude' leaves "
            f"them out):\n  {shown}"
        )
    if found:
        console.print(f"held_out: {len(found)} clips of the target's evaluation are left out", highlight=False)
    return [c for c in clips if c.id not in found]


def psi(run: PSIConfig) -> Path:
    """Runs or continues the stage. Returns the weights, ``out/weights.safetensors``."""
    if not run.manifests:
        raise ValueError("manifests: none is set")
    label_map = LabelMap.read(Path(run.label_map or recipe_folder() / "label_map.toml"))
    clips = refuse_leaks(merge(run.manifests, label_map), run.held_out)
    split = Split("hybrid", [c for c in clips if c.split not in ("val", "test")], [c for c in clips if c.split == "val"], [])
    if not split.train:
        raise ValueError("manifests: no clip is left to train on")
    if run.held_out.manifest is None:
        console.print("held_out is not set: nothing keeps the target's test clips out of this stage", style="yellow")
    with processes() as dist:
        task = Classification(label_map.classes)
        stage = SupervisedStage(run, dist, task, split, f"PSI {run.preset}")
        history = stage.trainer.fit()
        if dist.is_main and stage.trainer.state.step == stage.trainer.steps:
            (Path(run.out) / "classes.json").write_text(json.dumps(label_map.classes))
            results = None
            if split.val:
                folds = {"val": {"last": {"epoch": history[-1]["epoch"], **history[-1]["val"]}}}
                results = {"task": task.name, **task.about(), "folds": folds, "summary": summarise(task, folds)}
            from avfmae.viz.pages import stage_report

            stage_report(run.out, "PSI", run.preset, run.manifests, results=results)
        dist.barrier()
    return Path(run.out) / "weights.safetensors"
