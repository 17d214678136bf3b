"""Stage 3: fine-tuning on one labelled set, over folds or a given split, and the result table.

Three numbers are reported and never mixed: the last epoch's, that of the epoch which was best on held-out clips, and
that of the epoch which was best on the test set itself ("legacy", as the published numbers are; not a fair estimate).
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from avfmae import metrics
from avfmae.checkpoints import load_released, save_weights
from avfmae.console import console
from avfmae.data.batch import Batch
from avfmae.data.dataset import ClipDataset
from avfmae.data.manifest import ClassLabel, Clip, class_names, label_vector, read_manifest
from avfmae.data.preprocess import preprocess
from avfmae.data.quarantine import Quarantine
from avfmae.data.splits import Split, make_splits
from avfmae.files import atomic_write
from avfmae.inference import evaluate as evaluation
from avfmae.models.finetuning import AVFMAEForFinetuning
from avfmae.models.iavcl import BatchNorm
from avfmae.stages.config import FinetuneConfig, SupervisedConfig
from avfmae.tasks.mixing import mix
from avfmae.training.dist import Processes, processes
from avfmae.training.trainer import Trainer


class SupervisedStage:
    """What PSI and fine-tuning do alike: build the model, train it with labels, evaluate it.

    Args:
        run: settings. at: this process.
        classes: names in index order; None: regression.
        split: the clips; ``val`` and ``test`` may be empty.
        title: for the progress bar.
    """

    def __init__(self, run: SupervisedConfig, at: Processes, classes: tuple[str, ...] | None, split: Split, title: str):
        self.run, self.at, self.classes, self.split = run, at, classes, split
        cfg = run.model_config(drop_path=run.drop_path)
        torch.manual_seed(run.seed)
        self.outputs = len(classes) if classes else len(label_vector(split.train[0]))
        self.model = AVFMAEForFinetuning(cfg, self.outputs, "classification" if classes else "regression", run.modalities)
        if run.init is not None:
            console.print(str(load_released(self.model, run.init)), highlight=False)
        if run.freeze_batch_norm:
            for module in self.model.modules():
                if isinstance(module, BatchNorm):
                    module.frozen = True
        self.model.to(at.device)
        self.target = ClassLabel(classes) if classes else label_vector
        weights = None
        if run.class_balanced and classes:
            counts = {name: sum(c.label == name for c in split.train) for name in classes}
            weights = [1 / counts[c.label] for c in split.train]
        self.trainer = Trainer(
            run, at, title, self.model, self.dataset(split.train, "train"), self.loss, self.evaluate, weights, self.prepare
        )
        evaluated = len(split.val) + len(split.test)
        resumed = self.trainer.state.step > 0
        self.bad = Quarantine(Path(run.out) / "evaluation", evaluated, run.data.max_bad_share, at.is_main, resumed)

    def save(self) -> None:
        """Writes the weights again, with all that using them needs to know."""
        save_weights(
            self.model,
            Path(self.run.out) / "weights.safetensors",
            classes=self.classes,
            task=self.model.task,
            modalities=self.run.modalities,
            data=dataclasses.asdict(self.run.data),
        )

    def dataset(self, clips: Sequence[Clip], purpose: str) -> ClipDataset:
        return ClipDataset(clips, self.model.cfg, self.run.data, purpose, self.run.seed, self.target, self.run.modalities)

    def prepare(self, batch: Batch, number: int) -> Batch:
        """Crops, colours and mixes the clips; ``labels`` become what the loss is told: soft targets (B, classes), or values."""
        run, batch = self.run, preprocess(batch, self.model.cfg)
        if self.classes:
            smooth = run.label_smoothing
            targets = F.one_hot(batch.labels, self.outputs) * (1 - smooth) + smooth / self.outputs
        else:
            targets = batch.labels
        rng = np.random.Generator(np.random.Philox(key=[run.seed, number], counter=[0, 0, 0, self.at.rank]))
        batch, targets = mix(batch, targets, rng, run.mixup, run.cutmix, run.switch)
        return dataclasses.replace(batch, labels=targets)

    def loss(self, model: Callable, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Soft-target cross-entropy, or mean square error."""
        logits = model(batch.video, batch.audio).logits.float()
        if not self.classes:
            return F.mse_loss(logits, batch.labels), {}
        accuracy = (logits.argmax(-1) == batch.labels.argmax(-1)).float().mean()
        return F.cross_entropy(logits, batch.labels), {"accuracy": accuracy}

    def predict(self, clips: Sequence[Clip]) -> tuple[list[Clip], np.ndarray]:
        """The readable clips, and their outputs (n, outputs) averaged over views; the work is shared out over processes."""
        run = self.run
        per_pass = self.trainer.sampler.micro_batch // (run.data.segments * run.data.crops)
        mine = range(self.at.rank, len(clips), self.at.world)
        with self.trainer.step.autocast():
            found, failed = evaluation.predict(
                self.model, self.dataset(clips, "evaluate"), mine, max(1, per_pass), self.at.device
            )
        outputs: dict[int, np.ndarray] = {}
        for part, bad in self.at.gather((found, failed)):
            outputs |= part
            self.bad.add(bad)
        readable = [c for c in clips if c.id in outputs]
        return readable, np.array([outputs[c.id] for c in readable]).reshape(len(readable), self.outputs)

    def score(self, clips: Sequence[Clip]) -> dict:
        """Metrics of the clips; for classes also the confusion matrix."""
        clips, outputs = self.predict(clips)
        if not clips:
            raise RuntimeError(f"none of the evaluation clips is readable; see {self.bad.path}")
        return evaluation.score(clips, outputs, self.classes)

    def evaluate(self, epoch: int) -> dict | None:
        last = epoch + 1 == self.run.optim.epochs
        if (epoch + 1) % self.run.eval_epochs and not last:
            return None
        parts = {"val": self.split.val, "test": self.split.test}
        return {name: self.score(clips) for name, clips in parts.items() if clips} or None


def chosen_epochs(history: list[dict], select: str) -> dict[str, dict]:
    """The three reports of one fold: test metrics of the last epoch, of the best on held-out, and of the best on test."""
    chosen = {"last": history[-1]}
    if any("val" in h for h in history):
        chosen["best_on_held_out"] = max(history, key=lambda h: h["val"][select])
    chosen["best_on_test_legacy"] = max(history, key=lambda h: h["test"][select])
    return {name: {"epoch": h["epoch"], **h["test"]} for name, h in chosen.items()}


def summarise(folds: dict[str, dict[str, dict]]) -> dict[str, dict]:
    """Over folds: mean and spread of each metric, and for classes the metrics of all test clips pooled."""
    first = next(iter(folds.values()))
    summary = {}
    for kind in first:
        rows = [fold[kind] for fold in folds.values() if kind in fold]
        names = [n for n, v in rows[0].items() if isinstance(v, float)]
        summary[kind] = {
            n: {"mean": float(np.mean([r[n] for r in rows])), "std": float(np.std([r[n] for r in rows]))} for n in names
        }
        if "confusion" in rows[0]:
            pooled = np.sum([r["confusion"] for r in rows], axis=0)
            summary[kind]["pooled"] = {**metrics.classification(pooled), "confusion": pooled.tolist()}
    return summary


def labelled(clips: Sequence[Clip], source: object) -> list[Clip]:
    """The clips that have a label; says how many do not."""
    have = [c for c in clips if c.label is not None]
    if not have:
        raise ValueError(f"{source}: no clip has a label")
    if len(have) < len(clips):
        console.print(f"{source}: {len(clips) - len(have)} clips without a label are left out", highlight=False)
    return have


def check_labels(clips: Sequence[Clip], classes: tuple[str, ...] | None, source: object) -> None:
    """Raises ValueError where a label is no class, or not the numbers that the other labels are."""
    width = None
    for c in clips:
        if classes is not None:
            if c.label not in classes:
                raise ValueError(f"{source}, row {c.id + 1}: label {c.label!r} is none of the classes {', '.join(classes)}")
            continue
        try:
            values = label_vector(c)
        except ValueError:
            raise ValueError(
                f"{source}, row {c.id + 1}: label {c.label!r} is no list of numbers, which regression needs"
            ) from None
        width = width or len(values)
        if len(values) != width:
            raise ValueError(f"{source}, row {c.id + 1}: label has {len(values)} numbers, the others have {width}")


def finetune(run: FinetuneConfig) -> dict:
    """Runs or continues every fold; writes ``out/results.json`` and the report. Returns the results."""
    if run.manifest is None:
        raise ValueError("manifest: is not set; give the labelled clips with --manifest FILE")
    clips = labelled(read_manifest(run.manifest), run.manifest)
    classes = (tuple(run.classes) or tuple(class_names(clips))) if run.task == "classification" else None
    check_labels(clips, classes, run.manifest)
    select = run.select or ("UAR" if classes else "CCC")
    splits, folds = make_splits(clips, run.manifest, run.folds, run.only_fold, run.val_share, run.seed), {}
    with processes() as at:
        for split in splits:
            out = Path(run.out) if len(splits) == 1 else Path(run.out) / split.name.replace(" ", "-")
            stage = SupervisedStage(
                dataclasses.replace(run, out=out), at, classes, split, f"fine-tuning {run.preset}, {split.name}"
            )
            history = stage.trainer.fit()
            if stage.trainer.state.step < stage.trainer.steps:
                return {}  # stopped early by request
            if select not in history[-1]["test"]:
                raise ValueError(
                    f"select: got {select!r}, expected one of "
                    f"{', '.join(n for n, v in history[-1]['test'].items() if isinstance(v, float))}"
                )
            folds[split.name] = chosen_epochs(history, select)
            if at.is_main:
                stage.save()
        results = {"task": run.task, "classes": classes, "select": select, "folds": folds, "summary": summarise(folds)}
        if at.is_main:
            with atomic_write(Path(run.out) / "results.json") as temporary:
                temporary.write_text(json.dumps(results, indent=1))
            from avfmae.viz.pages import stage_report

            stage_report(run.out, "Fine-tuning", results=results)
        at.barrier()
    return results
