"""``avfmae experiment``: every fold and seed of a protocol, each a fine-tuning of its own, and one folder of results.

Where the file has PSI, each fine-tuning has a PSI of its own before it, which its fold's test clips are kept out of.
"""

import dataclasses
import json
import multiprocessing
import os
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from avfmae.bounds import check_least
from avfmae.console import console
from avfmae.data.manifest import read_manifest
from avfmae.extras import need
from avfmae.files import digest, write_json
from avfmae.options import ExperimentConfig
from avfmae.processes import end_with_parent
from avfmae.recipes import build, configuration, read_table
from avfmae.stages.config import FinetuneConfig, HeldOut, PSIConfig
from avfmae.stages.finetune import finetune, labelled
from avfmae.stages.leaks import refuse_leaks, refuse_tested
from avfmae.stages.psi import psi, sets_of
from avfmae.stages.splits import make_splits
from avfmae.tasks import make_task, predictions
from avfmae.tasks.pooling import summarise_predictions


@dataclass
class Experiment:
    """The file of an experiment.

    Attributes:
        dataset: a named data set, whose published numbers stand on the page.
        protocol: a file of fine-tuning settings, as ``avfmae dataset`` writes it.
        recipe: of fine-tuning.
        seeds: each trains all folds.
        resamples: of the bootstrap; 0: no confidence intervals.
        finetune: settings of fine-tuning over those of the protocol.
        psi: settings of PSI, from the recipe's; model and initial weights are fine-tuning's. None: no PSI.
        variants: by name, settings over those of fine-tuning, and perhaps ``psi = false``; each is a row of the results. None:
            one without a name.
    """

    dataset: str | None = None
    protocol: Path | None = None
    recipe: str | None = None
    seeds: tuple[int, ...] = (0,)
    resamples: int = 1000
    finetune: dict = field(default_factory=dict)
    psi: dict = field(default_factory=dict)
    variants: dict[str, dict] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Experiment":
        """Raises FileNotFoundError or ValueError, which name file and key."""
        return build(cls(), read_table(path), str(path))

    def __post_init__(self):
        check_least(self, resamples=0)
        tables = {"finetune": self.finetune} | {f"variants.{name}": changes for name, changes in self.variants.items()}
        for name, changes in tables.items():
            if found := {"seed", "out"} & changes.keys():
                raise ValueError(f"[{name}]: has {min(found)}, expected it in {'--out' if 'out' in found else 'seeds'}")
        for name, changes in self.variants.items():
            if changes.get("psi", False) is not False:
                raise ValueError(f"[variants.{name}]: psi is {changes['psi']!r}, expected false, or nothing")
        if elsewhere := {"preset", "model", "init", "seed", "out"} & self.psi.keys():
            raise ValueError(f"[psi]: has {min(elsewhere)}, expected it in [finetune], whose it takes")

    def runs(self, path: Path) -> dict[str, FinetuneConfig]:
        """Variant -> its settings."""
        tables = {f"{path} [finetune]": self.finetune}
        return {
            name: configuration(
                FinetuneConfig, "finetune", self.recipe, self.protocol,
                tables=tables | {f"{path} [variants.{name}]": {k: v for k, v in changes.items() if k != "psi"}},
            )
            for name, changes in (self.variants or {"": {}}).items()
        }  # fmt: skip

    def before(self, variant: str, run: FinetuneConfig, path: Path) -> PSIConfig | None:
        """The PSI before a variant's fine-tunings."""
        if not self.psi or "psi" in self.variants.get(variant, {}):
            return None
        found = configuration(PSIConfig, "psi", self.recipe, tables={f"{path} [psi]": self.psi})
        return dataclasses.replace(found, preset=run.preset, model=run.model, init=run.init)


@dataclass(frozen=True)
class Job:
    """One fine-tuning: a fold of a seed of a variant."""

    variant: str
    seed: int
    fold: str
    run: FinetuneConfig
    psi: PSIConfig | None = None


def experiment(run: ExperimentConfig) -> dict:
    """Runs or continues an experiment. Writes ``results.json``, ``results.csv``, ``results.tex``, ``predictions.parquet`` and
    ``report.html`` into its folder. Returns the results."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("experiment: was started by torchrun, expected one process; --jobs N or --engine ray share the work out")
    what, out = Experiment.read(run.file), Path(run.out or Path("runs") / run.file.stem)
    runs, checked = what.runs(run.file), set()
    jobs = [
        job
        for name, settings in runs.items()
        for job in jobs_of(name, settings, what.seeds, out, run.leaks, what.before(name, settings, run.file), checked)
    ]
    done = 0
    for done, _ in enumerate(execute(jobs, run), 1):
        console.print(f"{run.file.stem}: {done} of {len(jobs)} fine-tunings are done", highlight=False)
    assert done == len(jobs), f"{done} of {len(jobs)} fine-tunings gave a result"
    rows = [
        {"variant": job.variant, "seed": job.seed, **row}
        for job in jobs
        for row in predictions.read(job.run.out / "predictions.parquet")
    ]
    results: dict[str, Any] = {"dataset": what.dataset, "seeds": what.seeds, "variants": {}}
    for name, settings in runs.items():
        clips = labelled(read_manifest(settings.manifest or ""), settings.manifest)
        task = make_task(settings.task, clips, settings.manifest, settings.classes)
        mine = [row for row in rows if row["variant"] == name]
        results["variants"][name] = {
            "task": task.name, **task.about(), "select": settings.select or task.select, "modalities": settings.model.modalities,
            "clips": len({(row["path"], row["start"]) for row in mine}),
            "summary": summarise_predictions(task, mine, what.resamples),
        }  # fmt: skip
    from avfmae.viz.experiment import write_results

    write_results(out, results, rows, [job.run.out for job in jobs])
    console.print(f"{out / 'report.html'}: the results", highlight=False)
    return results


def jobs_of(
    variant: str,
    run: FinetuneConfig,
    seeds: Iterable[int],
    out: Path,
    check: str,
    semantics: PSIConfig | None,
    checked: set[tuple],
) -> list[Job]:
    """The fine-tunings of a variant, and the PSI before each.

    Args:
        checked: the sets of which a variant before was found free of leaks; those of this one are added.

    Raises:
        ValueError: a fold's training clips, or PSI's, hold a test clip, in whatever form; names them.
    """
    if run.manifest is None:
        raise ValueError("manifest: is not set; expected it in the protocol or in [finetune]")
    clips = labelled(read_manifest(run.manifest), run.manifest)
    injected, found = sets_of(semantics)[1] if semantics else [], []
    splits = make_splits(clips, run)
    for number, split in enumerate(splits):
        trained = [*split.train, *split.val]
        sets = (str(run.manifest), frozenset(c.id for c in trained), frozenset(c.id for c in split.test), bool(injected))
        if sets not in checked:
            refuse_tested(trained, split.test, f"{run.manifest}, {split.name}", check)
            if injected and semantics and semantics.held_out.on_leak == "refuse":
                try:
                    refuse_leaks(injected, split.test, "refuse", check == "contents")
                except ValueError as error:
                    raise ValueError(f"[psi], {split.name}: {error}") from error
            checked.add(sets)
        for seed in seeds:
            place = (
                out / "folds" / "-".join(filter(None, (variant.replace("/", "-"), f"seed {seed}", split.name))).replace(" ", "-")
            )
            only = None if run.folds is None else run.only_fold if len(splits) == 1 else number
            job = Job(variant, seed, split.name, dataclasses.replace(run, seed=seed, only_fold=only, out=place, leaks="off"))
            if semantics:
                held = HeldOut(run.manifest, folds=run.folds, fold=only or 0, on_leak=semantics.held_out.on_leak)
                job = dataclasses.replace(job, psi=dataclasses.replace(semantics, seed=seed, held_out=held, out=place / "psi"))
            found.append(job)
    return sorted(found, key=lambda job: job.seed)  # so that a first seed is whole early


def execute(jobs: list[Job], run: ExperimentConfig) -> Iterator[Path]:
    """Does the jobs that are not done, some at the same time; gives the folder of each."""
    if run.engine == "ray":
        yield from _on_ray(jobs, run)
    elif run.jobs == 1:
        yield from map(do, jobs)
    else:
        context = multiprocessing.get_context("spawn")
        cards = context.Queue()
        for number in range(run.jobs):
            cards.put(number % max(1, torch.cuda.device_count()))
        with ProcessPoolExecutor(run.jobs, context, _take_card, (cards,)) as pool:
            yield from pool.map(do, jobs)


def _take_card(cards: Any) -> None:
    """Each process computes on a GPU of its own, if there are some, and ends with the experiment."""
    end_with_parent()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    number = cards.get()
    if visible != "":  # which hides them all
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[number] if visible else str(number)


def _on_ray(jobs: list[Job], run: ExperimentConfig) -> Iterator[Path]:
    ray = need("ray", "ray", "--engine ray")
    started = not ray.is_initialized()
    if started:
        ray.init(run.ray_address, num_cpus=None if run.ray_address else run.jobs, log_to_driver=False, include_dashboard=False)
    try:
        # A task that is lost with its machine goes on from its last checkpoint.
        task = ray.remote(max_retries=2, num_cpus=1, num_gpus=min(1, int(ray.cluster_resources().get("GPU", 0))))(do)
        absolute = [
            dataclasses.replace(
                job,
                run=dataclasses.replace(job.run, **_absolute(job.run)),
                psi=job.psi and dataclasses.replace(job.psi, **_absolute(job.psi)),
            )
            for job in jobs
        ]
        yield from map(ray.get, [task.remote(job) for job in absolute])
    finally:
        if started:
            ray.shutdown()


def _absolute(run: FinetuneConfig | PSIConfig) -> dict[str, Any]:
    """The paths of a run, for a process that works in another folder."""
    names = ("manifest", "init", "out", "label_map")
    found: dict[str, Any] = {name: Path(path).absolute() for name in names if (path := getattr(run, name, None)) is not None}
    if isinstance(run, PSIConfig):
        found["manifests"] = tuple(Path(path).absolute() for path in run.manifests)
        found["held_out"] = dataclasses.replace(run.held_out, manifest=Path(run.held_out.manifest or "").absolute())
        if not found.get("label_map", Path()).is_file():
            found.pop("label_map", None)  # one of the recipes'
    return found


def _settings(run: FinetuneConfig | PSIConfig) -> dict[str, Any]:
    """All that the results of a run depend on, wherever it is started from; of files also their contents."""
    paths = _absolute(run)
    del paths["out"]
    files = {"manifests": paths.get("manifests", ())} | {name: (path,) for name, path in paths.items() if isinstance(path, Path)}
    settings = {k: v for k, v in dataclasses.asdict(run).items() if k not in ("out", "recipe", "config", "leaks")} | paths
    settings |= {f"{name} content": digest(some) for name, some in files.items() if some and all(p.is_file() for p in some)}
    return json.loads(json.dumps(settings, default=str))


def do(job: Job) -> Path:
    """Fine-tunes, or goes on, or does nothing where it was done; the checkpoints of what is done are removed.

    Raises:
        ValueError: another experiment's results are in the folder; names the settings that differ.
    """
    out, done = job.run.out, job.run.out / "done.json"
    now = _settings(job.run) | ({"psi": _settings(job.psi)} if job.psi else {})
    if done.exists():
        before = json.loads(done.read_text())
        if differing := sorted(k for k in now.keys() | before.keys() if now.get(k) != before.get(k)):
            raise ValueError(f"{out}: holds results of another {', '.join(differing)}; choose another out")
        return out
    run = job.run
    if job.psi:
        run = dataclasses.replace(run, init=psi(job.psi))
        if not (job.psi.out / "classes.json").exists():
            raise RuntimeError(f"{job.psi.out}: PSI was stopped before its end; the same command continues")
    if not finetune(run):
        raise RuntimeError(f"{out}: fine-tuning was stopped before its end; the same command continues")
    write_json(done, now)
    for folder in (out, out / "psi"):
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return out
