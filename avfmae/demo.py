"""``avfmae demo``: draw a data set, run all three stages of the tiny model on it, compare with training from scratch."""

import os
import time
from pathlib import Path

import numpy as np
import torch

from avfmae.config import ModelConfig
from avfmae.console import console
from avfmae.data.config import DataConfig
from avfmae.data.manifest import read_manifest, write_manifest
from avfmae.data.prepare import prepare
from avfmae.datasets.drawn import EMOTIONS, DemoSet, make_demo_set
from avfmae.options import DemoConfig, PrepareConfig
from avfmae.stages.config import FinetuneConfig, HeldOut, PretrainConfig, PSIConfig
from avfmae.stages.finetune import finetune
from avfmae.stages.pretrain import pretrain
from avfmae.stages.psi import psi
from avfmae.training.config import OptimConfig

# Two labelled sets name the same emotions differently; the label map brings them together.
STUDIO = dict(zip(EMOTIONS, ("calm-happy", "joy", "grief", "rage", "astonished", "terror"), strict=True))
STAGE = dict(zip(EMOTIONS, ("serene", "elated", "sorrow", "fury", "amazed", "panic"), strict=True))
SETS = {
    "wild": DemoSet("wild", first=0, people=30),
    "studio": DemoSet("studio", first=100, people=36, labels=STUDIO),
    "stage": DemoSet("stage", first=200, people=36, labels=STAGE),
    "target": DemoSet("target", first=300, people=20, labels={e: e for e in EMOTIONS}),
}
TEST_PEOPLE = 14
# Short schedules for a small model: high rates, no regularisation that takes an epoch's length to pay.
PRETRAINING = OptimConfig(lr=2.4e-2, epochs=8, warmup_epochs=1, total_batch=32, clip_grad=1.0)
INJECTION = OptimConfig(lr=1.1e-2, epochs=32, warmup_epochs=2, total_batch=24, clip_grad=1.0)
FINETUNING = OptimConfig(lr=5e-3, epochs=10, warmup_epochs=2, total_batch=12, clip_grad=1.0, layer_decay=0.9)


def demo(run: DemoConfig) -> Path:
    """Runs the demo. Returns the report, ``out/report.html``."""
    begun, out = time.monotonic(), Path(run.out)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) - run.workers))
    media = out / "media"
    manifests = {
        name: prepared(make_demo_set(media, s, test_people=TEST_PEOPLE if name == "target" else 0), media / f"{name}-prepared")
        for name, s in SETS.items()
    }
    target = manifests["target"]
    unlabelled = media / "unlabelled.csv"
    clips = [c for m in manifests.values() for c in read_manifest(m) if c.split != "test"]
    write_manifest(unlabelled, clips)
    label_map = media / "label_map.toml"
    label_map.write_text(label_map_toml({"studio": STUDIO, "stage": STAGE}))

    data = DataConfig(workers=run.workers, segments=1, crops=1, rand_augment=(0.0, 0), crop_scale=(0.75, 1.0),
                      multi_scales=(1.0, 0.875), erase=0.0)  # fmt: skip
    common = {"preset": "tiny", "data": data, "save_steps": 200, "log_steps": 1}
    pretrained = pretrain(PretrainConfig(out=out / "1-pretraining", manifest=unlabelled, optim=PRETRAINING, **common))
    common |= {"model": ModelConfig.preset("tiny"), "mixup": 0.0, "cutmix": 0.0}
    injected = psi(PSIConfig(
        out=out / "2-psi", manifests=(manifests["studio"], manifests["stage"]), label_map=label_map, init=pretrained,
        held_out=HeldOut(target), optim=INJECTION, **common,
    ))  # fmt: skip
    results: dict[str, list[dict]] = {"pre-trained": [], "from scratch": []}
    for name, init in (("pre-trained", injected), ("from scratch", None)):
        for seed in run.seeds:
            results[name].append(finetune(FinetuneConfig(
                out=out / f"3-finetuning-{name.replace(' ', '-')}-{seed}", manifest=target, init=init, seed=seed,
                classes=tuple(EMOTIONS), val_share=0.0, eval_epochs=FINETUNING.epochs, optim=FINETUNING, **common,
            )))  # fmt: skip
    for name, runs in results.items():
        uars = [r["summary"]["last"]["UAR"]["mean"] for r in runs]
        console.print(
            f"{name}: UAR {100 * np.mean(uars):.1f} ± {100 * np.std(uars):.1f} % on {TEST_PEOPLE} people never trained on",
            highlight=False,
        )
    from avfmae.viz.pages import demo_report

    path = demo_report(out, results, seconds=time.monotonic() - begun)
    console.print(f"{time.monotonic() - begun:.0f} s; open [bold]{path}[/bold]", highlight=False)
    return path


def prepared(manifest: Path, out: Path) -> Path:
    """The prepared set of a drawn one, whose manifest knows where the faces are. Returns its manifest."""
    return prepare(PrepareConfig(manifest, out, detector="manifest", margin=0.05, size=96, quality=16))


def label_map_toml(sources: dict[str, dict[str, str]]) -> str:
    """A label map file for sets whose labels are EMOTIONS under other names."""
    lines = [f"classes = {list(EMOTIONS)}".replace("'", '"')]
    for name, labels in sources.items():
        lines += ["", f"[map.{name}]", *(f'{label} = "{emotion}"' for emotion, label in labels.items())]
    return "\n".join(lines) + "\n"
