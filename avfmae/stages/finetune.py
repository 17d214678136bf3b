"""Stage 3: fine-tuning on one labelled set, over folds or a given split, and the result table."""

import dataclasses
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from avfmae.checkpoints import load_released
from avfmae.checkpoints.state import checkpoints
from avfmae.console import console
from avfmae.data.batch import Batch
from avfmae.data.clip import Clip
from avfmae.data.dataset import ClipDataset
from avfmae.data.loader import loader
from avfmae.data.manifest import read_manifest
from avfmae.data.preprocess import preprocess
from avfmae.data.quarantine import Quarantine
from avfmae.files import write_json
from avfmae.inference.predictions import Predictions, predict, write_predictions
from avfmae.models.finetuning import AVFMAEForFinetuning
from avfmae.models.lora import add_low_rank, freeze
from avfmae.stages import batch_statistics
from avfmae.stages.config import FinetuneConfig, SupervisedConfig
from avfmae.stages.crops import how_clips_were_read, preparation_of_run
from avfmae.stages.leaks import refuse_tested
from avfmae.stages.splits import Split, make_splits
from avfmae.tasks import make_task, predictions
from avfmae.tasks.interface import Task
from avfmae.tasks.mixing import mix
from avfmae.tasks.results import check_select, chosen_epochs, summarise
from avfmae.training.dist import Processes, processes
from avfmae.training.trainer import Trainer


class SupervisedStage:
    """What PSI and fine-tuning do alike: build the model, train it with labels, evaluate it.

    Args:
        run: settings. dist: this process.
        task: what is learnt.
        split: the clips; ``val`` and ``test`` may be empty.
        title: for the progress bar.
        weights: how often each training clip is drawn; None: as ``class_balanced`` says.
    """

    def __init__(
        self, run: SupervisedConfig, dist: Processes, task: Task, split: Split, title: str, weights: list[float] | None = None
    ):
        self.run, self.dist, self.task, self.split = run, dist, task, split
        self.how = preparation_of_run(run, split.train)
        torch.manual_seed(run.seed)
        self.model = AVFMAEForFinetuning(run.model, task.outputs, task.name)
        supervised = False  # whether a supervised stage has trained these weights
        if run.init is not None:
            report = load_released(self.model, run.init)
            supervised = "head.weight" not in report.missing
            console.print(str(report), highlight=False)
        freeze(self.model, run.freeze)
        if run.lora:
            add_low_rank(self.model, run.lora, run.lora_alpha)
        self.model.to(dist.device)
        norms = batch_statistics.batch_norms(self.model)
        if norms and run.freeze_batch_norm and not supervised and not dist.gather(checkpoints(Path(run.out) / "checkpoints"))[0]:
            self.measure()
        for norm in norms:
            norm.frozen = run.freeze_batch_norm
        if run.class_balanced:
            if weights is not None:
                raise ValueError("class_balanced: got True beside a temperature of the sets, expected one of the two")
            weights = task.sampling_weights(split.train)
        self.trainer = Trainer(
            run, dist, title, self.model, self.dataset(split.train, "train"), task.loss, self.evaluate, weights, self.prepare,
            {"held-out": split.val, "test": split.test}, vars(task),
            {"task": task.name, **task.about(), **how_clips_were_read(run, self.how)},
        )  # fmt: skip
        evaluated = len(split.val) + len(split.test)
        resumed = self.trainer.state.step > 0
        self.bad = Quarantine(Path(run.out) / "evaluation", evaluated, run.data.max_bad_share, dist.is_main, resumed)

    def measure(self) -> None:
        """Takes batch statistics from some of the training clips."""
        run = self.run
        rng = np.random.Generator(np.random.Philox(key=[run.seed, 1]))
        some = [self.split.train[i] for i in rng.permutation(len(self.split.train))[: batch_statistics.CLIPS]]
        dataset = self.dataset(some, "evaluate")
        size = max(1, min(32, run.optim.micro_batch or 32) // (run.data.segments * run.data.crops))
        items = [[(0, i) for i in range(k, min(k + size, len(some)))] for k in range(0, len(some), size)]
        workers = min(run.data.workers, len(items))
        read = (batch.to(self.dist.device) for batch in loader(dataset, items, workers) if batch.clips)
        batch_statistics.measure_batch_norm(self.model, (preprocess(batch, self.model.cfg) for batch in read))

    def dataset(self, clips: Sequence[Clip], purpose: str) -> ClipDataset:
        run = self.run
        return ClipDataset(clips, self.model.cfg, run.data, purpose, run.seed, self.task.target, preparation=self.how)

    def prepare(self, batch: Batch, number: int) -> Batch:
        """Crops, colours and mixes the clips; ``labels`` become the task's targets."""
        run, batch = self.run, preprocess(batch, self.model.cfg)
        targets = self.task.targets(batch.labels, run.label_smoothing)
        rng = np.random.Generator(np.random.Philox(key=[run.seed, number], counter=[0, 0, 0, self.dist.rank]))
        batch, targets = mix(batch, targets, rng, run.mixup, run.cutmix, run.switch)
        return dataclasses.replace(batch, labels=targets)

    def predict(self, clips: Sequence[Clip]) -> Predictions:
        """The clips' outputs, averaged over views; the work is shared out over processes."""
        run = self.run
        per_pass = self.trainer.sampler.micro_batch // (run.data.segments * run.data.crops)
        mine = range(self.dist.rank, len(clips), self.dist.world)
        with self.trainer.step.autocast():
            found = predict(self.model, self.dataset(clips, "evaluate"), mine, max(1, per_pass), self.dist.device)
        found = found.gathered(self.dist)
        self.bad.add(found.bad)
        return found

    def score(self, clips: Sequence[Clip], found: Predictions) -> dict:
        """The task's metrics of the clips."""
        readable = [c for c in clips if c.id in found.outputs]
        if not readable:
            raise RuntimeError(f"none of the evaluation clips is readable; see {self.bad.path}")
        return self.task.metrics(readable, np.array([found.outputs[c.id] for c in readable]))

    def evaluate(self, epoch: int) -> dict | None:
        """Metrics of the held-out and the test clips; of the last epoch, ``predictions.csv`` is written too."""
        last = epoch + 1 == self.run.optim.epochs
        if (epoch + 1) % self.run.eval_epochs and not last:
            return None
        metrics, rows = {}, []
        for name, clips in (("val", self.split.val), ("test", self.split.test)):
            if clips:
                found = self.predict(clips)
                metrics[name] = self.score(clips, found)
                rows += found.rows(self.task, [dataclasses.replace(clip, split=name) for clip in clips])
                if name == "test" and self.dist.is_main:
                    predictions.keep(Path(self.run.out) / "predictions", epoch, found.outputs)
        if last and rows and self.dist.is_main:
            write_predictions(rows, Path(self.run.out) / "predictions.csv")
        return metrics or None


def labelled(clips: Sequence[Clip], source: object) -> list[Clip]:
    """The clips that have a label; says how many do not."""
    have = [c for c in clips if c.label is not None]
    if not have:
        raise ValueError(f"{source}: no clip has a label")
    if len(have) < len(clips):
        console.print(f"{source}: {len(clips) - len(have)} clips without a label are left out", highlight=False)
    return have


def finetune(run: FinetuneConfig) -> dict:
    """Runs or continues every fold; writes ``out/results.json`` and the report. Returns the results."""
    if run.manifest is None:
        raise ValueError("manifest: is not set; give the labelled clips with --manifest FILE")
    clips = labelled(read_manifest(run.manifest), run.manifest)
    task = make_task(run.task, clips, run.manifest, run.classes)
    select = run.select or task.select
    splits, folds = make_splits(clips, run), {}
    some = splits[0].test
    with warnings.catch_warnings(action="ignore"):  # of metrics that answers all alike leave undefined
        check_select(select, task.metrics(some, np.zeros((len(some), task.outputs), np.float32)))
    for split in splits:
        refuse_tested([*split.train, *split.val], split.test, f"{run.manifest}, {split.name}", run.leaks)
    with processes() as dist:
        for split in splits:
            out = Path(run.out) if len(splits) == 1 else Path(run.out) / split.name.replace(" ", "-")
            stage = SupervisedStage(
                dataclasses.replace(run, out=out), dist, task, split, f"fine-tuning {run.preset}, {split.name}"
            )
            history = stage.trainer.fit()
            if stage.trainer.state.step < stage.trainer.steps:
                return {}  # stopped early by request
            folds[split.name] = chosen_epochs(task, history, select)
            if dist.is_main:
                predictions.write(task, out / "predictions", split.test, split.name, folds[split.name])
        results = {"task": task.name, **task.about(), "select": select, "folds": folds, "summary": summarise(task, folds)}
        if dist.is_main:
            write_json(Path(run.out) / "results.json", results)
            from avfmae.viz.pages import stage_report

            stage_report(run.out, "Fine-tuning", run.preset, [run.manifest], results=results)
        dist.barrier()
    return results
