"""What each stage is told: typed dataclasses over :class:`avfmae.training.config.RunConfig`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from avfmae.bounds import check_least, check_shares
from avfmae.config import ModelConfig
from avfmae.training.config import OptimConfig, RunConfig


@dataclass
class PretrainConfig(RunConfig):
    """Masked pre-training on unlabelled clips.

    Attributes:
        manifest: the clips.
    """

    manifest: Path | None = None


@dataclass
class SupervisedConfig(RunConfig):
    """What PSI and fine-tuning share. By default, the preset's model gets ``drop_path`` 0.1.

    Attributes:
        label_smoothing: share of the target that is spread over all classes.
        mixup: Beta parameter of blending clips; 0: off.
        cutmix: Beta parameter of pasting clips into each other; 0: off.
        switch: share of batches that get cutmix rather than mixup.
        class_balanced: draw clips so that every class comes equally often; for tasks with classes.
        freeze: ``encoders`` stay as they were loaded, or ``all`` but the head does: linear probing.
        lora: rank of the updates that encoders and fusion learn in place of their weights; 0: they learn their weights. Written
            weights have the updates added.
        lora_alpha: updates are scaled by this over the rank.
        eval_epochs: evaluate every so many epochs, and after the last.
        freeze_batch_norm: normalise by the same statistics in training as in evaluation: by those that were loaded, if a
            supervised stage learnt them, else by those of the training clips before the first step. The released recipe
            does not: but its one BatchNorm serves both fusion units, whose statistics differ, so that what is learnt with
            each batch's own is not what evaluation computes with their average.
    """

    optim: OptimConfig = field(default_factory=lambda: OptimConfig(
        lr=1e-3, min_lr=1e-6, warmup_lr=1e-6, betas=(0.9, 0.999), layer_decay=0.75, total_batch=160))  # fmt: skip
    label_smoothing: float = 0.1
    mixup: float = 0.8
    cutmix: float = 1.0
    switch: float = 0.5
    class_balanced: bool = False
    freeze: Literal["none", "encoders", "all"] = "none"
    lora: int = 0
    lora_alpha: float = 16.0
    eval_epochs: int = 1
    freeze_batch_norm: bool = True

    def __post_init__(self):
        super().__post_init__()
        check_least(self, mixup=0, cutmix=0, lora=0, eval_epochs=1)
        check_shares(self, "label_smoothing", "switch")

    def preset_model(self) -> ModelConfig:
        return super().preset_model().replace(drop_path=0.1)


@dataclass
class HeldOut:
    """The clips of the target that the second stage must not see.

    Attributes:
        manifest: the target's manifest.
        split: the value of its split column that is held out.
        folds: instead of a split: as fine-tuning cuts them.
        fold: which of the folds is held out.
        on_leak: ``refuse`` to train, or ``exclude`` the clips and subjects that it shares.
    """

    manifest: Path | None = None
    split: str = "test"
    folds: int | Literal["loso", "given"] | None = None
    fold: int = 0
    on_leak: Literal["refuse", "exclude"] = "refuse"


@dataclass
class PSIConfig(SupervisedConfig):
    """Progressive semantics injection: supervised post-pre-training on several labelled sets with one label space.

    Attributes:
        manifests: the labelled sets.
        label_map: TOML: ``classes``; by data set, ``[map.NAME] source = "hybrid"``, and label smoothing in ``[smoothing]``. A
            file, or one of the recipes': label_map.toml (13 emotions, the default) or label_map_micro.toml (3 classes of
            micro-expressions).
        temperature: a set of n clips is drawn as often as n to this power says; 1: as it is, 0: all sets equally often.
    """

    manifests: tuple[Path, ...] = ()
    label_map: Path | None = None
    temperature: float = 1.0
    held_out: HeldOut = field(default_factory=HeldOut)

    def __post_init__(self):
        super().__post_init__()
        check_shares(self, "temperature")


@dataclass
class FinetuneConfig(SupervisedConfig):
    """Fine-tuning on one labelled set, and its result table.

    Attributes:
        manifest: the clips, with labels; its split column holds train, test and perhaps val, unless ``folds`` is given.
        task: ``classification``, ``regression``; ``soft``, of labels such as ``anger 0.7, fear 0.3``; ``multilabel``, such as
            ``anger+fear``; or another task that is registered.
        classes: for classification, the class names in index order; empty: those that occur, sorted. For regression, the names
            of the dimensions.
        folds: cut the clips into this many folds, by subject where there are subjects; ``loso``: one a subject; ``given``: the
            manifest's fold column says which fold tests a clip.
        only_fold: run one of them alone.
        val_share: of the training subjects (or clips) held out for choosing the epoch, where no split is called val.
        select: the metric that chooses epochs.
        leaks: how test clips are looked for among training clips: by ``contents`` too, by ``names`` and subjects, or not
            (``off``). What is found is refused.
    """

    manifest: Path | None = None
    task: str = "classification"
    classes: tuple[str, ...] = ()
    folds: int | Literal["loso", "given"] | None = None
    only_fold: int | None = None
    val_share: float = 0.1
    select: str | None = None
    leaks: Literal["contents", "names", "off"] = "contents"

    def __post_init__(self):
        super().__post_init__()
        check_shares(self, "val_share")
