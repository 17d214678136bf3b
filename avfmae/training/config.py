"""What a run is told: typed dataclasses, read from TOML, overridable on the command line."""

import dataclasses
import tomllib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from avfmae.config import ModelConfig
from avfmae.data.config import DataConfig


@dataclass
class OptimConfig:
    """AdamW with a per-step cosine after a linear warm-up.

    Attributes:
        lr: peak learning rate for a total batch of 256; this and the next two are scaled by total_batch / 256.
        min_lr: where the cosine ends.
        warmup_lr: where the warm-up begins.
        betas: AdamW's decay of its two moments.
        weight_decay: of matrices; 1-D tensors and tokens have none.
        layer_decay: each layer's rate is this times the next one's; 1: all the same.
        epochs: passes over the clips.
        warmup_epochs: of these, the first ones with a rising rate.
        total_batch: clips a step over all processes; kept by accumulating gradients.
        micro_batch: most clips in a forward pass of one process; None: its whole share of the total batch.
        clip_grad: largest norm of the gradient; None: not clipped.
        moments: AdamW's: ``float32``; ``compact``, three bytes a weight instead of eight, on a CPU only; ``auto``: compact on a
            CPU, where their bytes are time, if betas[1] is about 0.95; with 0.999, as in fine-tuning, 8 bits are coarse.
        ema: decay of a running average of the weights, which is written beside them; None: none is kept.
        max_skipped: the run stops after this many non-finite steps in a row.
    """

    lr: float = 3e-4
    min_lr: float = 1e-5
    warmup_lr: float = 1e-6
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.05
    layer_decay: float = 1.0
    epochs: int = 100
    warmup_epochs: float = 5
    total_batch: int = 256
    micro_batch: int | None = None
    clip_grad: float | None = None
    moments: Literal["auto", "float32", "compact"] = "auto"
    ema: float | None = None
    max_skipped: int = 10


@dataclass
class RunConfig:
    """What all stages share.

    Attributes:
        recipe: a published recipe by its name (base, large, huge; pre-training also hicmae_base); a configuration file overrides
            it.
        config: a TOML file with any of these settings; the command line overrides it.
        out: the run's folder: logs, checkpoints, weights, report. A run found there is continued.
        preset: model size: tiny, base, large, huge (pre-training also hicmae_base).
        region_mode: ``exact`` regions are places; ``released`` ones are runs of visible tokens, for published weights.
        token_order: ``raster``, or ``released`` with its displaced decoder positions, for published weights.
        init: weights to start from (safetensors or a released pickle).
        seed: of weights, order, masks and augmentation.
        precision: ``auto`` is bf16 on a GPU and on processors that multiply it, and float32 on others.
        capture: run the whole step as one CUDA graph, or on a CPU from a tape of its ops (one process).
        compile: let torch.compile have what the kernels leave.
        recompute: what blocks do again on the way back to save memory: nothing, the cheap, or everything.
        save_steps: a checkpoint every so many steps, and at the end.
        log_steps: a line of log every so many steps; between them nothing waits for the device.
        tensorboard: write TensorBoard event files too, beside log.jsonl (``pip install 'avfmae[tensorboard]'``).
        stop_after: end the run after this many steps, as if interrupted; for tests and probes.
    """

    recipe: str | None = None
    config: Path | None = None
    out: Path = Path("runs/run")
    preset: str = "base"
    region_mode: Literal["exact", "released"] = "exact"
    token_order: Literal["raster", "released"] = "raster"
    init: Path | None = None
    seed: int = 0
    precision: Literal["auto", "float32", "bf16"] = "auto"
    capture: bool = True
    compile: bool = False
    recompute: Literal["none", "selective", "full"] = "none"
    save_steps: int = 500
    log_steps: int = 10
    tensorboard: bool = False
    stop_after: int | None = None
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    def model_config(self, **changes) -> ModelConfig:
        return ModelConfig.preset(self.preset).replace(
            region_mode=self.region_mode, token_order=self.token_order, recompute=self.recompute, **changes
        )


@dataclass
class PretrainConfig(RunConfig):
    """Masked pre-training on unlabelled clips.

    Attributes:
        manifest: the clips.
        gather_negatives: HCMCL contrasts with the clips of all processes.
        negatives: HCMCL contrasts each clip with this many others, whatever the batch; None: with all.
        attention: torch's scaled-dot-product attention, or the flash-attn package, for the decoder's long sequences.
    """

    manifest: Path | None = None
    gather_negatives: bool = True
    negatives: int | None = None
    attention: Literal["sdpa", "flash"] = "sdpa"


@dataclass
class SupervisedConfig(RunConfig):
    """What PSI and fine-tuning share.

    Attributes:
        modalities: both, or one of them.
        drop_path: stochastic depth, the rate of the last block.
        label_smoothing: share of the target that is spread over all classes.
        mixup: Beta parameter of blending clips; 0: off.
        cutmix: Beta parameter of pasting clips into each other; 0: off.
        switch: share of batches that get cutmix rather than mixup.
        class_balanced: draw clips so that every class comes equally often.
        eval_epochs: evaluate every so many epochs, and after the last.
        freeze_batch_norm: normalise by the statistics that were loaded, in training as in evaluation. The released recipe
            does not: but its one BatchNorm serves both fusion units, whose statistics differ, so that what is learnt with
            each batch's own is not what evaluation computes with their average.
    """

    optim: OptimConfig = field(default_factory=lambda: OptimConfig(
        lr=1e-3, min_lr=1e-6, warmup_lr=1e-6, betas=(0.9, 0.999), layer_decay=0.75, total_batch=160))  # fmt: skip
    modalities: tuple[Literal["video", "audio"], ...] = ("video", "audio")
    drop_path: float = 0.1
    label_smoothing: float = 0.1
    mixup: float = 0.8
    cutmix: float = 1.0
    switch: float = 0.5
    class_balanced: bool = False
    eval_epochs: int = 1
    freeze_batch_norm: bool = True


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
    folds: int | Literal["loso"] | None = None
    fold: int = 0
    on_leak: Literal["refuse", "exclude"] = "refuse"


@dataclass
class PSIConfig(SupervisedConfig):
    """Progressive semantics injection: supervised post-pre-training on several labelled sets with one label space.

    Attributes:
        manifests: the labelled sets.
        label_map: TOML: ``classes`` and, by data set, ``[map.NAME] source = "hybrid"``; unset: the recipes' label_map.toml.
    """

    manifests: tuple[Path, ...] = ()
    label_map: Path | None = None
    held_out: HeldOut = field(default_factory=HeldOut)


@dataclass
class FinetuneConfig(SupervisedConfig):
    """Fine-tuning on one labelled set, and its result table.

    Attributes:
        manifest: the clips, with labels; its split column holds train, test and perhaps val, unless ``folds`` is given.
        task: ``classification`` or ``regression``.
        classes: class names in index order; empty: those that occur, sorted.
        folds: cut the clips into this many folds, by subject where there are subjects; ``loso``: one a subject.
        only_fold: run one of them alone.
        val_share: of the training subjects (or clips) held out for choosing the epoch, where no split is called val.
        select: the metric that chooses epochs.
    """

    manifest: Path | None = None
    task: Literal["classification", "regression"] = "classification"
    classes: tuple[str, ...] = ()
    folds: int | Literal["loso"] | None = None
    only_fold: int | None = None
    val_share: float = 0.1
    select: str | None = None


T = TypeVar("T")


def recipe_folder() -> Path:
    """Where the published recipes lie: ``avfmae/configs`` of an installed package, ``train/configs`` of a source tree."""
    package = Path(__file__).parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "train" / "configs"


def recipes(stage: str) -> list[str]:
    """The names of a stage's published recipes. ``stage``: ``pretrain``, ``psi`` or ``finetune``."""
    return sorted(path.stem.removesuffix(f"_{stage}") for path in recipe_folder().glob(f"*_{stage}.toml"))


def read_recipe(kind: type[T], stage: str, name: str) -> T:
    """A published recipe of a stage as a configuration of ``kind``.

    Raises:
        ValueError: the stage has no recipe of this name; lists those that it has.
    """
    if name not in recipes(stage):
        raise ValueError(
            f"--recipe: got {name!r}, expected one of {', '.join(recipes(stage))} for {stage} (from {recipe_folder()}); "
            "a file of your own goes by --config"
        )
    return read_toml(kind, recipe_folder() / f"{name}_{stage}.toml")


def read_toml(kind: type[T], path: str | Path, default: T | None = None) -> T:
    """A configuration of ``kind`` from a TOML file, over ``default``; paths in it are relative to the working directory.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no TOML, has an unknown key, or a value of the wrong type; names file and key.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such configuration file")
    try:
        table = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: is no TOML ({error})") from error
    for key in ("recipe", "config"):
        if key in table:
            raise ValueError(f"{path}: {key!r} goes on the command line, not into a configuration file")
    return _build(kind() if default is None else default, table, str(path))


def _build(default: Any, table: dict, where: str) -> Any:
    """A copy of ``default`` with what the table gives; what the table leaves out stays."""
    known = typing.get_type_hints(type(default))
    unknown = sorted(set(table) - set(known))
    if unknown:
        raise ValueError(f"{where}: unknown key {unknown[0]!r}; known are {', '.join(known)}")
    changes = {}
    for key, value in table.items():
        if dataclasses.is_dataclass(known[key]):
            if not isinstance(value, dict):
                raise ValueError(f"{where}: {key} is {value!r}, expected a table")
            changes[key] = _build(getattr(default, key), value, f"{where} [{key}]")
        else:
            changes[key] = _convert(known[key], value, f"{where}: {key}")
    return dataclasses.replace(default, **changes)


def _convert(kind: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        for option in arguments:
            try:
                return _convert(option, value, where)
            except ValueError:
                continue
    elif origin is Literal:
        if value in arguments:
            return value
    elif origin is tuple and isinstance(value, list):
        each = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(each) == len(value):
            return tuple(_convert(k, v, where) for k, v in zip(each, value, strict=True))
    elif kind is Path and isinstance(value, str):
        return Path(value)
    elif kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif isinstance(kind, type) and type(value) is kind:
        return value
    raise ValueError(f"{where} is {value!r}, expected {getattr(kind, '__name__', None) or kind}")
