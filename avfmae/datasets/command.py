"""``avfmae dataset``: lists the data sets, tells of one, writes its manifest, and verifies it."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from avfmae.console import console
from avfmae.data.clip import Clip
from avfmae.data.faces import chosen_detector
from avfmae.data.manifest import write_manifest
from avfmae.datasets import datasets, find_dataset
from avfmae.datasets.interface import NOT_IN_FILE, Dataset, Options
from avfmae.datasets.media import missing, placed
from avfmae.files import printable, write_table
from avfmae.options import DatasetConfig

SHOWN = 10  # faults that are printed


def dataset(run: DatasetConfig) -> None:
    """Raises SystemExit with 1 where a verification finds a fault."""
    if run.name is None:
        list_all()
        return
    chosen = find_dataset(run.name)
    if run.root is None:
        if run.out is not None or run.verify:
            raise ValueError(f"root: none is given, expected the folder of {chosen.title}")
        describe(chosen)
        return
    if run.out is not None and run.out.suffix not in (".csv", ".parquet"):
        raise ValueError(f"out: got {run.out}, expected a name that ends in .csv or .parquet")
    if run.out is None and not run.verify:
        raise ValueError("out: none is given, expected the manifest to write (or --verify)")
    options = Options(run.classes, run.annotation, run.faces, run.sound)
    clips = [placed(clip, run.root, options) for clip in chosen.annotated(run.root, options)]
    reasons = {clip.id: reason for clip in clips if (reason := missing(clip))}
    present = [clip for clip in clips if clip.id not in reasons]
    noted = {path for path, _ in options.notes}
    untold = [clip for clip in clips if clip.id in reasons and not ((clip.start, clip.end) == NOT_IN_FILE and clip.path in noted)]
    found = options.notes + [(clip.path, reasons[clip.id]) for clip in untold]
    if not present:
        first = f"{clips[0].path}: {reasons[clips[0].id]}"
        raise ValueError(f"{run.root}: of {len(clips)} clips none is there ({first}); expected\n{chosen.tree}")
    if run.out is not None:
        write_manifest(run.out, present)
        console.print(f"{run.out}: {len(present)} of {len(clips)} clips", highlight=False)
        if chosen.task != "pretraining":
            settings = run.out.with_suffix(".toml")
            settings.write_text(finetuning(chosen, run.out, present, options), encoding="utf-8")
            console.print(f"{settings}: how it is fine-tuned on, for avfmae finetune --config", highlight=False)
    differing = []
    if run.verify:
        from avfmae.datasets.checking import faults  # imports torch, for which nothing else here waits

        found += faults(chosen, present, chosen_detector(run.detector), run.yunet and str(run.yunet), run.workers, run.time_limit)
        differing = compare(chosen, clips, present)
    report = run.faults or (run.out and run.out.with_suffix(".faults.csv"))
    if found:
        for path, reason in found[:SHOWN]:
            console.print(printable(f"{path}: {reason}"), highlight=False)
        console.print(f"{len(found)} faults{f', all in {report}' if report else ''}", highlight=False)
    if report:
        write_table(report, ("path", "reason"), ({"path": path, "reason": reason} for path, reason in found))
    if run.verify and (found or differing):
        raise SystemExit(1)


def finetuning(chosen: Dataset, manifest: Path, clips: Sequence[Clip], options: Options) -> str:
    """A configuration for ``avfmae finetune``: the protocol of the data set."""
    folds = "given" if all(clip.fold is not None for clip in clips) else chosen.folds
    values = {
        "manifest": str(manifest), "task": chosen.task, "classes": list(chosen.class_order(clips, options)), "folds": folds,
        "select": chosen.metrics[0],
    }  # fmt: skip
    lines = [f"# {chosen.title}: {chosen.protocol}; {', '.join(chosen.metrics)}"]
    lines += [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items() if value is not None]
    if len(chosen.modalities) == 1:
        lines += ["[model]", f"modalities = {json.dumps(list(chosen.modalities))}"]
    return "\n".join(lines + (["[data]", 'sampling = "uniform"'] if chosen.uniform else [])) + "\n"


def compare(chosen: Dataset, clips: Sequence[Clip], present: Sequence[Clip]) -> list[str]:
    """Prints how many clips there should be, are annotated and are there: all, by class, by fold; gives the rows that differ."""
    shown, differing = Table("", "expected", "annotated", "there", box=None), []

    def rows(kind: str, expected: Mapping[str, int], annotated: Mapping[str, int], there: Mapping[str, int]) -> None:
        for name in sorted({*expected, *annotated}, key=lambda name: (*expected, *annotated, name).index(name)):
            wanted = expected.get(name)
            counts = ("not known" if wanted is None else str(wanted), str(annotated.get(name, 0)), str(there.get(name, 0)))
            shown.add_row(f"{kind} {name}".strip(), *counts)
            if not (wanted in (None, annotated.get(name, 0)) and annotated.get(name, 0) == there.get(name, 0)):
                differing.append(f"{kind} {name}".strip())

    rows("", {} if chosen.clips is None else {"clips": chosen.clips}, {"clips": len(clips)}, {"clips": len(present)})
    if chosen.task == "classification":
        of = [Counter(clip.label or "" for clip in some) for some in (clips, present)]
        rows("class", {name: chosen.histogram[name] for name in chosen.classes if name in chosen.histogram}, *of)
    if chosen.task != "pretraining":
        folds = sorted({clip.fold or clip.split or "" for clip in clips} - {""}, key=lambda name: (len(name), name))
        of = [Counter(clip.fold or clip.split or "" for clip in some) for some in (clips, present)]
        if len(folds) > 20:
            shown.add_row("folds", "", str(len(folds)), str(len({clip.fold for clip in present})))
        else:
            kind = "fold" if chosen.folds else "split"
            rows(kind, chosen.by_fold, *({name: one[name] for name in folds} for one in of))
    console.print(shown, highlight=False)
    if differing:
        console.print(f"{len(differing)} counts differ: {', '.join(differing)}", highlight=False)
    return differing


def list_all() -> None:
    """Prints every data set with task, protocol, licence and where to ask for it."""
    shown = Table(show_header=False, box=None, padding=(0, 1))
    shown.add_column(no_wrap=True)
    for one in datasets().values():
        name, title, count, task, metrics, protocol, licence, source = row(one)
        about = [title, f"{count} clips" if count else "", task, protocol if metrics else "", metrics]
        shown.add_row(name, f"{'; '.join(filter(None, about))}\n{licence}: {source}")
    Console(markup=False).print(shown, highlight=False)


def row(one: Dataset) -> tuple[str, ...]:
    """A data set's row of the table of all."""
    task = one.task
    if task != "pretraining":
        task += f", {len(one.classes)} {'dimensions' if task == 'regression' else 'classes'}" if one.classes else ""
    metrics = "" if task == "pretraining" else ", ".join(one.metrics)
    count = "" if one.clips is None else f"{one.clips:,}"
    return one.name, one.title, count, task, metrics, one.protocol, one.licence, one.source


def describe(one: Dataset) -> None:
    """Prints all that is known of one data set."""
    shown = Table(show_header=False, box=None)
    names = ("name", "data set", "clips", "task", "metrics", "protocol", "licence", "where to ask")
    for name, value in zip(names, row(one), strict=True):
        shown.add_row(name, value)
    shown.add_row("modalities", ", ".join(one.modalities))
    kind = "dimensions" if one.task == "regression" else "classes"
    shown.add_row(kind, ", ".join(one.classes) or ("" if one.task == "pretraining" else "their order is not published"))
    shown.add_row("what is read", one.tree)
    Console(markup=False).print(shown, highlight=False)
