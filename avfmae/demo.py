"""``avfmae demo``: draw data sets, run all three stages of a small model on them, and tell what each stage is worth.

Four ways to the same fine-tuning are compared: from scratch, after pre-training alone, after PSI alone, and after both. Stages
that do not wait for each other run at the same time, each in a process of its own.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import redirect_stderr
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from avfmae.config import PRESETS, ModelConfig
from avfmae.console import console
from avfmae.data.config import DataConfig
from avfmae.data.manifest import read_manifest, write_manifest
from avfmae.data.prepare import prepare
from avfmae.datasets.drawn import EMOTIONS, DemoSet, make_demo_set
from avfmae.inference.probe import linear_probe
from avfmae.options import DemoConfig, PrepareConfig
from avfmae.processes import cores, end_with_parent
from avfmae.stages.config import FinetuneConfig, HeldOut, PretrainConfig, PSIConfig
from avfmae.stages.finetune import finetune
from avfmae.stages.pretrain import pretrain
from avfmae.stages.psi import psi
from avfmae.training.config import OptimConfig
from avfmae.training.runlog import read_log

PRESET = "demo"  # whose sizes every member of the family takes here
# Two labelled sets name the same emotions differently; the label map brings them together.
STUDIO = dict(zip(EMOTIONS, ("calm-happy", "joy", "grief", "rage", "astonished", "terror"), strict=True))
STAGE = dict(zip(EMOTIONS, ("serene", "elated", "sorrow", "fury", "amazed", "panic"), strict=True))
SETS = {
    "wild": DemoSet("wild", first=0, people=70),
    "studio": DemoSet("studio", first=100, people=6, held_out=2, labels=STUDIO),
    "stage": DemoSet("stage", first=200, people=6, held_out=2, labels=STAGE),
    "target": DemoSet("target", first=300, people=28, labels={e: e for e in EMOTIONS}),
}
TEST_PEOPLE = 20
# Short schedules for a small model: high rates, no regularisation that takes an epoch's length to pay.
PRETRAINING = OptimConfig(lr=1.6e-2, epochs=55, warmup_epochs=5, total_batch=32, clip_grad=1.0, weight_decay=0.0)
INJECTION = OptimConfig(epochs=25, warmup_epochs=3, total_batch=24, clip_grad=1.0, layer_decay=0.5)
FINETUNING = OptimConfig(epochs=25, warmup_epochs=3, total_batch=12, clip_grad=1.0, layer_decay=0.5)
# What is compared, and each one's learning rates of PSI and of fine-tuning: of RATES, the best by the recall on people who are
# held out of PSI's and of the target's training clips, as ``avfmae demo --choose-rates`` prints it.
ROWS = {
    "scratch": "from scratch",
    "pretraining": "after pre-training alone",
    "psi": "after PSI alone",
    "both": "after pre-training and PSI",
}
PSI_RATES = {"psi": 2e-2, "both": 2e-2}
FINETUNING_RATES = {"scratch": 2e-2, "pretraining": 8e-2, "psi": 2e-2, "both": 4e-2}
RATES = (2e-2, 4e-2, 8e-2, 1.6e-1)
FOLDS = 3  # of the training people, for choosing


def demo(run: DemoConfig) -> Path | None:
    """Runs the demo, or chooses its learning rates. Returns the report, ``out/report.html``."""
    begun = time.monotonic()
    if run.model not in PRESETS and f"{run.model}_base" in PRESETS:
        run = replace(run, model=f"{run.model}_base")  # "hicmae": the demo has one size
    ModelConfig.preset(run.model)  # raises before anything is drawn
    stages = Stages(run, draw(run))
    with stages.lanes:
        if run.choose_rates:
            return stages.choose_rates()
        return report(run, stages, begun)


def draw(run: DemoConfig) -> dict[str, Path]:
    """Draws the sets and prepares them as one.

    Returns:
        Manifests: of each set; of all clips but the test people's (``unlabelled``); of all that have labels, under the target's
        names (``labelled``); and of the target's training people (``training``), among whom rates are chosen.
    """
    media = run.out / "media"
    drawn = [
        make_demo_set(media, what, processes=lanes(), test_people=TEST_PEOPLE if name == "target" else 0)
        for name, what in SETS.items()
    ]
    everything = [clip for manifest in drawn for clip in read_manifest(manifest)]
    write_manifest(media / "drawn.csv", [replace(clip, id=i) for i, clip in enumerate(everything)])
    # The drawn manifests know where the faces are.
    prepared = PrepareConfig(media / "drawn.csv", media / "prepared", detector="manifest", margin=0.05, size=80, quality=16)
    clips = read_manifest(prepare(prepared))
    parts = {name: [c for c in clips if c.dataset == name] for name in SETS}
    parts["unlabelled"] = [c for c in clips if c.split != "test"]
    emotion = {name: emotion for labels in (STUDIO, STAGE) for emotion, name in labels.items()}
    others = [replace(c, label=emotion[c.label], split="train") for name in ("studio", "stage") for c in parts[name]]
    parts["labelled"] = [replace(c, id=i) for i, c in enumerate(others + parts["target"])]
    parts["training"] = [c for c in parts["target"] if c.split == "train"]
    for name, part in parts.items():
        write_manifest(media / f"{name}-prepared.csv", part)
    (media / "label_map.toml").write_text(label_map_toml({"studio": STUDIO, "stage": STAGE}))
    return {name: media / f"{name}-prepared.csv" for name in parts}


def lanes() -> int:
    """Stages that run at the same time."""
    return cores()


class Stages:
    """The stages of the demo, each submitted to a lane: a process that works on one stage at a time, with one thread."""

    def __init__(self, run: DemoConfig, manifests: dict[str, Path]):
        self.run, self.manifests = run, manifests
        self.lanes = ProcessPoolExecutor(lanes(), get_context("spawn"), end_with_parent)
        data = DataConfig(workers=0, stride=8, segments=1, crops=1, roll=False, rand_augment=(0.0, 0), crop_scale=(0.75, 1.0),
                          erase=0.0, multi_scales=(1.0, 0.875))  # fmt: skip
        self.model = ModelConfig.preset(PRESET)
        if run.model != PRESET:
            self.model = ModelConfig.preset(run.model).at_size_of(self.model)
        self.common = {"preset": run.model, "model": self.model, "data": data, "save_steps": 10_000, "log_steps": 5}
        self.labelled = self.common | {"mixup": 0.0, "cutmix": 0.0}

    def submit(self, title: str, stage: Callable, config: PretrainConfig | PSIConfig | FinetuneConfig) -> Future:
        return self.lanes.submit(in_lane, title, stage, config)

    def pretrain(self) -> Future:
        config = PretrainConfig(
            out=self.run.out / "1-pretraining",
            manifest=self.manifests["unlabelled"],
            seed=self.run.pretraining_seed,
            optim=PRETRAINING,
            **self.common,
        )
        return self.submit("pre-training", pretrain, config)

    def psi(self, row: str, init: Path | None, rate: float, out: str = "") -> Future:
        config = PSIConfig(
            out=self.run.out / (out or f"2-{row}"),
            manifests=(self.manifests["studio"], self.manifests["stage"]),
            label_map=self.run.out / "media" / "label_map.toml",
            init=init,
            held_out=HeldOut(self.manifests["target"]),
            optim=replace(INJECTION, lr=rate),
            eval_epochs=INJECTION.epochs,
            **self.labelled,
        )
        return self.submit(f"PSI, {ROWS[row]}", psi, config)

    def finetune(
        self, row: str, init: Path | None, seed: int, rate: float | None = None, out: str = "", manifest: str = "target",
        folds: int | None = None,
    ) -> Future:  # fmt: skip
        config = FinetuneConfig(
            out=self.run.out / (out or f"3-finetuning-{row}-{seed}"),
            manifest=self.manifests[manifest],
            init=init,
            seed=seed,
            classes=tuple(EMOTIONS),
            folds=folds,
            val_share=0.0,
            eval_epochs=FINETUNING.epochs,
            optim=replace(FINETUNING, lr=rate or FINETUNING_RATES[row]),
            **self.labelled,
        )
        return self.submit(f"fine-tuning {ROWS[row]}, seed {seed}", finetune, config)

    def probe(self, title: str, weights: Path | None, seed: int) -> Future:
        clips = read_manifest(self.manifests["labelled"])
        arguments = (self.model, weights, clips, self.common["data"], tuple(EMOTIONS), seed)
        return self.lanes.submit(in_lane, f"linear probe of {title}", linear_probe, *arguments)

    def choose_rates(self) -> None:
        """Trains with every rate, and prints each row's recall on people who were held out of training."""
        folder, pretrained = self.run.out / "rates", self.pretrain()
        start: dict[str, Path | None] = {"scratch": None}
        runs = {("psi", rate): self.psi("psi", None, rate, f"rates/psi-psi-{rate}") for rate in RATES}  # beside pre-training
        start["pretraining"] = pretrained.result()
        runs |= {("both", rate): self.psi("both", start["pretraining"], rate, f"rates/psi-both-{rate}") for rate in RATES}
        print_rates("PSI", {key: psi_recall(folder / f"psi-{key[0]}-{key[1]}", run) for key, run in runs.items()})
        for row, rate in PSI_RATES.items():
            start[row] = runs[row, rate].result()
        tuned = {
            (row, rate): [
                self.finetune(row, init, seed, rate, f"rates/{row}-{rate}-{seed}", manifest="training", folds=FOLDS)
                for seed in range(2)
            ]
            for row, init in start.items()
            for rate in RATES
        }
        print_rates("fine-tuning", {key: float(np.mean([uar(run) for run in some])) for key, some in tuned.items()})

    def compare(self) -> tuple[dict[str, list[dict]], dict[str, list[float]]]:
        """Returns each row's fine-tuning results, a seed each, and each linear probe's recalls."""
        pretrained, injected = self.pretrain(), self.psi("psi", None, PSI_RATES["psi"])
        seeds = self.run.seeds
        random = [self.probe("random weights", None, seed) for seed in seeds]
        tuned = {"scratch": [self.finetune("scratch", None, seed) for seed in seeds]}
        tuned["psi"] = [self.finetune("psi", injected.result(), seed) for seed in seeds]  # while pre-training goes on
        both = self.psi("both", pretrained.result(), PSI_RATES["both"])
        features = [self.probe("pre-trained features", pretrained.result(), 0)]
        tuned["pretraining"] = [self.finetune("pretraining", pretrained.result(), seed) for seed in seeds]
        tuned["both"] = [self.finetune("both", both.result(), seed) for seed in seeds]
        probes = {"pre-trained features": features, "random weights": random}
        return (
            {row: [run.result() for run in tuned[row]] for row in ROWS},
            {name: [run.result() for run in runs] for name, runs in probes.items()},
        )


def in_lane(title: str, stage: Callable, *arguments: object) -> object:
    """Runs a stage in this process; what it says of its progress goes to ``console.txt`` in its folder."""
    torch.set_num_threads(1)
    folder = getattr(arguments[0], "out", None)
    begun = time.monotonic()
    if folder is None:
        result = stage(*arguments)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / "console.txt", "a", buffering=1) as file, redirect_stderr(file):
            result = stage(*arguments)
    console.print(f"{title}: {time.monotonic() - begun:.0f} s", highlight=False)
    return result


def uar(run: Future) -> float:
    """Of a fine-tuning's last epoch, the mean over its folds."""
    return run.result()["summary"]["last"]["UAR"]["mean"]


def psi_recall(out: Path, run: Future) -> float:
    """On the people who were held out of the second stage's training."""
    run.result()
    return next(line["evaluation"]["val"]["UAR"] for line in reversed(read_log(out / "log.jsonl")) if "evaluation" in line)


def print_rates(stage: str, recalls: dict[tuple[str, float], float]) -> None:
    for row in dict.fromkeys(row for row, _ in recalls):
        mine = {rate: value for (name, rate), value in recalls.items() if name == row}
        each = ", ".join(f"{rate:g}: {100 * value:.1f} %" for rate, value in mine.items())
        console.print(f"{stage}, {ROWS[row]}: UAR on held-out people {each}; best {max(mine, key=mine.get):g}", highlight=False)


def report(run: DemoConfig, stages: Stages, begun: float) -> Path:
    """Compares, prints the table and writes the page."""
    from avfmae.viz.demo import demo_report, spread

    results, probes = stages.compare()
    for row, runs in results.items():
        text = spread([r["summary"]["last"]["UAR"]["mean"] for r in runs])
        seen = spread([expressions(r) for r in runs])
        console.print(
            f"fine-tuning {ROWS[row]}: UAR {text} on {TEST_PEOPLE} people never trained on; of the three expressions {seen}",
            highlight=False,
        )
    for name, recalls in probes.items():
        console.print(f"linear probe of {name}: UAR {spread(recalls)}", highlight=False)
    path = demo_report(run.out, {ROWS[row]: runs for row, runs in results.items()}, probes, time.monotonic() - begun)
    console.print(f"{time.monotonic() - begun:.0f} s; open {path}", highlight=False)
    return path


def expressions(result: dict) -> float:
    """Of a fine-tuning's last epoch, the share of clips whose expression is recognised, calm or excited."""
    names = np.array([EMOTIONS[name][0] for name in result["classes"]])
    confusion = np.array(result["summary"]["last"]["pooled"]["confusion"])
    return float(confusion[names[:, None] == names].sum() / confusion.sum())


def label_map_toml(sources: dict[str, dict[str, str]]) -> str:
    """A label map file for sets whose labels are EMOTIONS under other names."""
    lines = [f"classes = {list(EMOTIONS)}".replace("'", '"')]
    for name, labels in sources.items():
        lines += ["", f"[map.{name}]", *(f'{label} = "{emotion}"' for emotion, label in labels.items())]
    return "\n".join(lines) + "\n"
