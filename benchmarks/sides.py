"""The sides of a comparison: each a model and its training step, fed from the same clips."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import avfmae
import avfmae_kernels as K
from avfmae import engines
from avfmae.data.batch import Batch
from avfmae.engines.captured import EAGER_STEPS
from avfmae.models.pretraining import init_xavier
from avfmae.tasks.reconstruction import pretraining_loss
from avfmae.training.config import OptimConfig
from avfmae.training.precision import compute_dtype
from avfmae.training.step import TrainingStep
from avfmae.training.upload import uploaded
from avfmae_benchmarks.options import Model, SideName, Stage
from avfmae_benchmarks.peers import training as published
from avfmae_benchmarks.peers.hicmae import HiCMAE
from avfmae_benchmarks.peers.released import ReleasedAVFMAE, ReleasedClassifier
from avfmae_benchmarks.peers.video import PublishedVideo
from avfmae_kernels.gather_patches import IMAGENET_MEAN, IMAGENET_STD

ENGINES = {"ours": "auto", "ours-fastest": "cpu", "ours-eager": "eager", "reference": "eager", "compiled": "auto"}
OURS = tuple(ENGINES)
PEERS = ("hicmae", "hicmae-compiled", "released", "mae_dfer", "svfap")  # what speed-ups are against; docs/performance.md
CLASSES = 11
OPTIM = OptimConfig(lr=1e-4, min_lr=1e-4, warmup_lr=1e-4)
# What a peer computes, and which of our models it stands beside. The tiny ones are nobody's: they are there to try the benchmark
# out.
PRETRAINS: dict[SideName, tuple[Model, tuple[Model, ...]]] = {
    "hicmae": ("hicmae_base", ("base", "hicmae_base", "tiny")),
    "hicmae-compiled": ("hicmae_base", ("base", "hicmae_base", "tiny")),
    "mae_dfer": ("mae_dfer", ("mae_dfer", "tiny")),
    "svfap": ("svfap", ("svfap", "tiny")),
}
RELEASED = ("tiny", "base", "large", "huge")  # sizes of AVF-MAE++, which is a peer in both stages


@dataclass
class Side:
    """One contender: ``run()`` takes the next batch from the host and leaves new weights; ``loss()`` runs it once and gives the
    loss."""

    name: str
    precision: str
    batch: int
    model: nn.Module
    run: Callable[[], object]
    state: Callable[[], list[Tensor]]  # what it holds between steps: weights, copies, moments
    flops: float  # useful operations of a step
    planned: Callable[[], int] = int  # bytes that a tape holds between steps


def published_clip(video: Tensor) -> Tensor:
    """uint8 (B, T, H, W, 3) -> what the published loaders give: normalised float32 (B, 3, T, H, W)."""
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    return ((video / 255 - mean) / std).permute(0, 4, 1, 2, 3).contiguous()


def host_batch(cfg: avfmae.ModelConfig, stage: Stage, batch: int, seed: int = 0) -> Batch:
    """Random clips with masks, or with soft targets, as the data loader gives them."""
    g = torch.Generator().manual_seed(seed)
    video = torch.randint(0, 256, (batch, *cfg.video.size, 3), dtype=torch.uint8, generator=g)
    audio = torch.randn(batch, 1, *cfg.audio.size, generator=g) if "audio" in cfg.modalities else None
    masks = avfmae.DualMask.sample(cfg, batch, g) if stage == "pretrain" else None
    labels = None if stage == "pretrain" else torch.rand(batch, CLASSES, generator=g).softmax(-1)
    return Batch(video, audio, labels, masks, list(range(batch)))


def published_batch(cfg: avfmae.ModelConfig, batch: Batch) -> published.PublishedBatch:
    """The same clips and masks in the form that the published loops are given."""
    assert batch.video is not None
    clips = published.PublishedBatch(published_clip(batch.video), batch.audio, labels=batch.labels)
    if batch.masks:

        def everywhere_but(kept: str) -> tuple[Tensor, ...]:
            found = []
            for name in cfg.modalities:
                index = getattr(getattr(batch.masks, name), kept)
                hidden = torch.ones(len(index), getattr(cfg, name).tokens, dtype=torch.bool)
                found.append(hidden.scatter_(1, index, False))
            return tuple(found)

        clips.masks = everywhere_but("visible")
        clips.decoders = everywhere_but("decoded") if cfg.decoder_masks else None
    return clips


def config(side: SideName, stage: Stage, model: Model) -> avfmae.ModelConfig:
    """What a side computes. The peers' masks, token orders and leaks are the released ones.

    Raises:
        ValueError: the side has no such stage or model.
    """
    if side not in PEERS:
        return avfmae.ModelConfig.preset(model)
    preset, models = PRETRAINS.get(side, (model, RELEASED))
    if model not in models or (stage != "pretrain" and side in PRETRAINS):
        where = f"in {'pre-training' if side in PRETRAINS else 'both stages'} of {', '.join(models)}"
        raise ValueError(f"{side}: is compared {where}, asked for were {stage} and {model}")
    cfg = avfmae.ModelConfig.preset(preset)
    cfg = cfg.at_size_of(avfmae.ModelConfig.preset("tiny")) if model == "tiny" else cfg
    return cfg.replace(token_order="released", region_mode="released", unmasked_context=cfg.encoder == "tpsbt")


def peers(stage: Stage, model: Model) -> list[SideName]:
    """The published executions that our model is measured against by default."""
    found: list[SideName] = []
    for side, (_, beside) in PRETRAINS.items():
        if stage == "pretrain" and model != "tiny" and model in beside:
            found.append(side)
    if model in RELEASED:
        found.append("released")
    return found


def our_model(cfg: avfmae.ModelConfig, stage: Stage) -> nn.Module:
    if stage == "finetune":
        return avfmae.AVFMAEForFinetuning(cfg, CLASSES)
    return avfmae.AVFMAEForPretraining(cfg)


def peer_model(side: SideName, cfg: avfmae.ModelConfig, stage: Stage) -> nn.Module:
    if side.startswith("hicmae"):
        model = HiCMAE(cfg, sdpa=side == "hicmae-compiled")
    elif side in PRETRAINS:
        model = PublishedVideo(cfg)
    else:
        model = ReleasedAVFMAE(cfg) if stage == "pretrain" else ReleasedClassifier(cfg, CLASSES)
    init_xavier(model)
    return model


def finetuning_loss(model: Callable, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    assert batch.labels is not None
    return F.cross_entropy(model(batch.video, batch.audio).logits.float(), batch.labels), {}


@cache
def useful_flops(cfg: avfmae.ModelConfig, stage: Stage) -> float:
    """Matrix products of one clip's forward and backward pass that reach the loss or a gradient, multiply and add counted."""
    model, batch = our_model(cfg, stage), host_batch(cfg, stage, 2)
    loss = pretraining_loss if stage == "pretrain" else finetuning_loss
    with K.use("reference"), FlopCounterMode(display=False) as counter:
        loss(model, batch)[0].backward()
    return counter.get_total_flops() / 2


def build(side: SideName, stage: Stage, name: Model, precision: str, batch: int, device: torch.device) -> Side:
    """A side at rest; ``precision`` is ``"float32"``, ``"bf16"`` or, for the peers, ``"fp16"``."""
    torch.manual_seed(0)
    cfg = config(side, stage, name)
    clips = host_batch(cfg, stage, batch)
    flops, planned = batch * useful_flops(cfg, stage), int
    if side in OURS:
        if precision == "fp16":
            raise ValueError(f"{side}: trains in bf16 or float32, asked for was fp16")
        with K.use("reference") if side == "reference" else nullcontext():
            model = our_model(cfg, stage).to(device)
            loss = pretraining_loss if stage == "pretrain" else finetuning_loss
            forward = torch.compile(model) if side == "compiled" else None
            step = TrainingStep(model, loss, OPTIM, 10_000, 100, precision=precision, forward=forward)
            execute = engines.build(ENGINES[side], step)
        source = uploaded(itertools.repeat(pinned(clips, device)), device)

        def run() -> object:
            with K.use("reference") if side == "reference" else nullcontext():
                return execute([next(source)])["loss"]

        def state():
            moments = [t for s in step.optimizer.state.values() for t in s.values()]
            return [*model.parameters(), *step.params.of.values(), *moments, *model.buffers()]

        def bytes_of_tape() -> int:
            part = execute
            while part is not step and not getattr(part, "tape", None):
                part = part.step
            return part.tape.arena.nbytes if part is not step else 0

        planned = bytes_of_tape
    else:
        model = peer_model(side, cfg, stage).to(device)
        loss = published.pretraining_loss if stage == "pretrain" else published.finetuning_loss
        called = torch.compile(model, dynamic=False) if side == "hicmae-compiled" else model
        step = published.PublishedStep(model, loss, OPTIM, precision, fused=side == "hicmae-compiled", called=called)
        given = published_batch(cfg, clips)
        given = given.map(Tensor.pin_memory) if device.type == "cuda" else given

        def run() -> object:
            return step(given)

        def state():
            moments = [t for s in step.optimizer.state.values() for t in s.values() if isinstance(t, Tensor)]
            return [*model.parameters(), *moments, *model.buffers()]

    return Side(side, precision, batch, model, run, state, flops, planned)


def pinned(batch: Batch, device: torch.device) -> Batch:
    return batch.map(lambda t: t.pin_memory()) if device.type == "cuda" else batch


def precisions(side: SideName, device: torch.device) -> list[str]:
    """What a side is measured in by default: on a GPU what each was made for, on a CPU everything that it multiplies."""
    if device.type == "cuda":
        return ["fp16"] if side in PEERS and side != "hicmae-compiled" else ["bf16"]
    return ["float32", "bf16"] if compute_dtype("auto", device) == torch.bfloat16 else ["float32"]


def check(sides: list[SideName], stage: Stage, name: Model, device: torch.device) -> Iterator[tuple[str, bool, str]]:
    """Whether what is to be timed computes the same: (what, whether, by how much), one a comparison, on two clips in float32.

    ``ours``, replayed as it will be, against the plain path with the same weights: loss and gradient norm. A peer against our
    model of its kind with its weights, read through the released layout: the loss.
    """
    for side in sides:
        if side == "reference":
            continue
        cfg = config(side, stage, name)
        clips = host_batch(cfg, stage, 2)
        torch.manual_seed(1)
        own = our_model(cfg, stage).to(device)
        loss = pretraining_loss if stage == "pretrain" else finetuning_loss
        if side in OURS:
            numbers, still = [], OptimConfig(lr=0, min_lr=0, warmup_lr=0)  # a rate of 0: every step is the first
            for way, times in (("auto", EAGER_STEPS + 3), ("reference", 1)):  # the last one is replayed
                with K.use(way):
                    forward = torch.compile(own) if side == "compiled" and way == "auto" else None
                    step = TrainingStep(own, loss, still, 100, 10, precision="float32", forward=forward)
                    execute = engines.build(ENGINES[side] if way == "auto" else "eager", step)
                    values = [execute([clips.to(device)]) for _ in range(times)][-1]
                    numbers.append(torch.stack([values["loss"], values["grad_norm"]]).double().cpu())
            what = f"{side} against the plain path: loss and gradient norm"
        else:
            peer = peer_model(side, cfg, stage).to(device)
            avfmae.load_released(peer, avfmae.released_state_dict(own))
            peer_loss = published.pretraining_loss if stage == "pretrain" else published.finetuning_loss
            given = published_batch(cfg, clips).map(lambda t: t.to(device))
            with K.use("reference"), torch.no_grad():
                ours = loss(own, clips.to(device))[0]
            with torch.no_grad():
                theirs = peer_loss(peer, cfg, given, lambda: torch.autocast(device.type, enabled=False))
            numbers = [theirs.double().cpu().reshape(1), ours.double().cpu().reshape(1)]
            what = f"{side} against our model of its weights: loss"
        distance = float(((numbers[0] - numbers[1]).abs() / numbers[1].abs()).max())
        yield what, distance < 1e-4, f"{distance:.1e} apart"
