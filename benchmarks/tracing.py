"""``avfmae bench trace``: what a step asks of a GPU, counted on tensors without memory, and the time that a model gives it."""

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

import avfmae
import avfmae_kernels as K
from avfmae.config import ModalityConfig
from avfmae.console import console
from avfmae.data.batch import Batch
from avfmae.masking import DualMask, ModalityMask
from avfmae.tasks.reconstruction import pretraining_loss
from avfmae.training.step import TrainingStep
from avfmae_benchmarks import measure, sides
from avfmae_benchmarks.gpus import CHIPS, Chip, step_seconds
from avfmae_benchmarks.options import SideName, Stage, TraceConfig
from avfmae_benchmarks.peers import training as published
from avfmae_benchmarks.recorder import Launch, Recorder, fused
from avfmae_kernels.device import as_on_gpu


@dataclass
class Trace:
    """A side's step: its calls, and the bytes of its clips on the host, of its weights with all that an optimiser keeps, of
    its gradients, and of what is there beside its weights at a step's peak."""

    side: SideName
    calls: list[Launch]
    upload: int
    state: int
    gradients: int
    activations: int

    @property
    def launches(self) -> int:
        return sum(call.launches for call in self.calls)

    @property
    def bytes(self) -> int:
        return sum(call.bytes for call in self.calls)

    @property
    def flop(self) -> float:
        return sum(call.flop for call in self.calls)

    def modelled(self, chip: Chip, upload: bool = False) -> float:
        """Seconds of a step; ours sends the next clips while it computes, the others before."""
        sent = self.upload / (chip.host * 1e9)
        step = step_seconds(self.calls, chip)
        if not upload:
            return step
        return max(step, sent) if self.side in sides.OURS else step + sent


def traced(side: SideName, stage: Stage, cfg: avfmae.ModelConfig, batch: int, precision: str = "", capability: int = 90) -> Trace:
    """Records one step of a side of :mod:`avfmae_benchmarks.sides`, after the first: the optimiser has its state.

    Args:
        precision: of ours, ``"bf16"`` or ``"float32"``; peers go in what each was made for.
    """
    ours = side in sides.OURS
    with torch.device("meta"):
        model = sides.our_model(cfg, stage) if ours else sides.peer_model(side, cfg, stage)
    with FakeTensorMode(allow_non_fake_inputs=True), as_on_gpu(capability):
        model.to_empty(device="cpu")
        step = _ours(side, stage, model, batch, precision) if ours else _published(side, stage, model, batch)
        with Recorder(step.true):
            step.prepare()
        recorder = Recorder(step.true, step.state())
        with recorder:
            step.run()
    calls = list(fused(recorder.launches)) if side == "hicmae-compiled" else recorder.launches
    parameters = list(model.parameters())
    gradients = sum(p.numel() * (2 if ours and precision != "float32" and p.ndim > 1 else 4) for p in parameters)
    state = sum(t.numel() * t.element_size() for t in step.state())
    return Trace(side, calls, step.upload, state, gradients, recorder.peak)


@dataclass
class _Step:
    run: Callable[[], None]
    state: Callable[[], list[Tensor]]
    upload: int
    prepare: Callable[[], object]
    true: Sequence[tuple[Tensor, int]] = ()


def _clips(stage: Stage, cfg: avfmae.ModelConfig, batch: int) -> Batch:
    """As :func:`avfmae_benchmarks.sides.host_batch`, without numbers."""

    def mask(m: ModalityConfig) -> ModalityMask:
        seen, decoded = (torch.empty(batch, n, dtype=torch.int64) for n in (m.visible, m.decoded))
        return ModalityMask(seen, decoded, torch.empty(batch, m.decoded, dtype=torch.bool))

    video = torch.empty(batch, *cfg.video.size, 3, dtype=torch.uint8)
    audio = torch.empty(batch, 1, *cfg.audio.size) if "audio" in cfg.modalities else None
    if stage == "finetune":
        return Batch(video, audio, torch.empty(batch, sides.CLASSES), None, list(range(batch)))
    masks = DualMask(mask(cfg.video), None if audio is None else mask(cfg.audio))
    return Batch(video, audio, None, masks, list(range(batch)))


def config_of(model: nn.Module) -> avfmae.ModelConfig:
    assert isinstance(model.cfg, avfmae.ModelConfig)
    return model.cfg


def _ours(side: SideName, stage: Stage, model: nn.Module, batch: int, precision: str) -> _Step:
    loss = pretraining_loss if stage == "pretrain" else sides.finetuning_loss
    step = TrainingStep(model, loss, sides.OPTIM, 100, 10, precision=precision or "bf16")
    clips = _clips(stage, config_of(model), batch)

    def run() -> None:
        with K.use("reference") if side == "reference" else nullcontext():
            step([clips])

    def state() -> list[Tensor]:
        moments = [t for s in step.optimizer.state.values() for t in s.values()]
        return list({id(t): t for t in [*model.parameters(), *step.params.of.values(), *moments]}.values())

    upload = sum(t.nbytes for t in (clips.video, clips.audio) if t is not None)
    return _Step(run, state, upload, lambda: [step.optimizer.state_of(p) for p in model.parameters()])


def _published(side: SideName, stage: Stage, model: nn.Module, batch: int) -> _Step:
    cfg = config_of(model)
    low = torch.bfloat16 if side == "hicmae-compiled" else torch.float16
    audio = torch.empty(batch, 1, *cfg.audio.size) if "audio" in cfg.modalities else None
    clips = published.PublishedBatch(torch.empty(batch, 3, *cfg.video.size), audio)
    true: list[tuple[Tensor, int]] = []
    if stage == "pretrain":

        def masks(kept: str) -> tuple[Tensor, ...]:
            found = []
            for m in (getattr(cfg, name) for name in cfg.modalities):
                found.append(torch.empty(batch, m.tokens, dtype=torch.bool))
                true.append((found[-1], batch * (m.tokens - getattr(m, kept))))
            return tuple(found)

        clips.masks = masks("visible")
        clips.decoders = masks("decoded") if cfg.decoder_masks else None
    else:
        clips.labels = torch.empty(batch, sides.CLASSES)
    loss_of = published.pretraining_loss if stage == "pretrain" else published.finetuning_loss
    fused_update = side == "hicmae-compiled"
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=not fused_update, fused=fused_update)

    def run() -> None:
        optimizer.zero_grad()
        cast: dict[int, Tensor] = {}  # autocast casts a weight once a step
        loss_of(model, cfg, clips, lambda: Autocast(low, cast)).backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        if not fused_update:
            torch._amp_foreach_non_finite_check_and_unscale_(gradients, torch.empty(()), torch.empty(()))
            torch.stack([torch.linalg.vector_norm(g) for g in gradients])
        else:
            torch.stack(list(torch._foreach_norm(gradients)))
        optimizer.step()

    def state() -> list[Tensor]:
        return [*model.parameters(), *(t for s in optimizer.state.values() for t in s.values() if isinstance(t, Tensor))]

    return _Step(run, state, sum(t.nbytes for t in (clips.video, clips.audio) if t is not None), run, true)


LOW = {
    F.linear, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.bmm, F.conv3d, F.conv2d, F.conv1d,
    torch.conv3d, torch.conv2d, torch.conv1d, F.scaled_dot_product_attention, F.prelu, torch.prelu,
}  # fmt: skip
HIGH = {
    F.layer_norm, F.mse_loss, F.normalize, F.cross_entropy, torch.norm,
    torch.Tensor.pow, torch.Tensor.__pow__, torch.Tensor.sum,
}  # fmt: skip
SOFTMAX = {torch.Tensor.softmax, torch.softmax, F.softmax}


class Autocast(TorchFunctionMode):
    """CUDA's autocast for CPU tensors that stand in for a GPU's: what it computes in ``low``, in float32, and casts."""

    def __init__(self, low: torch.dtype, cast: dict[int, Tensor]):
        super().__init__()
        self.low, self.cast = low, cast

    def as_dtype(self, x: object, dtype: torch.dtype) -> object:
        if not (isinstance(x, Tensor) and x.is_floating_point() and x.dtype != dtype):
            return x
        if isinstance(x, nn.Parameter):
            if id(x) not in self.cast:
                self.cast[id(x)] = x.to(dtype)
            return self.cast[id(x)]
        return x.to(dtype)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in LOW or func in HIGH:
            dtype = self.low if func in LOW else torch.float32
            args = tuple(self.as_dtype(a, dtype) for a in args)
            kwargs = {name: self.as_dtype(value, dtype) for name, value in kwargs.items()}
        elif func in SOFTMAX and args[0].dtype == self.low:
            kwargs = dict(kwargs, dtype=torch.float32)  # its kernel reads one and writes the other
        return func(*args, **kwargs)


def chip_of(run: TraceConfig) -> Chip:
    if run.gpu not in CHIPS:
        raise ValueError(f"gpu: got {run.gpu!r}, expected one of {', '.join(CHIPS)}")
    return CHIPS[run.gpu]


def trace(run: TraceConfig) -> list[dict]:
    """Prints what each side's step asks of the GPU, and returns it as rows."""
    chip = chip_of(run)
    names = run.sides or default_sides(run)
    batch = run.batch or {"pretrain": 256, "finetune": 32}[run.stage]
    traces = []
    for name in names:
        if not run.json:
            console.print(f"tracing {name} …", highlight=False)
        traces.append(traced(name, run.stage, sides.config(name, run.stage, run.model), batch, run.precision, chip.capability))
    rows = [summary(t, chip) | {"stage": run.stage, "size": run.model, "batch": batch, "gpu": chip.name} for t in traces]
    if run.json:
        for row in rows:
            print(json.dumps(row))
        return rows
    measure.show(
        table(traces, chip, f"{run.stage} {run.model}, batch {batch}; times are a model of an {chip.name}, not measured")
    )
    for t in traces if run.lines else ():
        measure.show(by(t, chip, "line", run.lines))
    for t in traces:
        measure.show(by(t, chip, "group"))
    return rows


def default_sides(run: TraceConfig) -> tuple[SideName, ...]:
    return ("ours", "reference", *sides.peers(run.stage, run.model))


def summary(t: Trace, chip: Chip) -> dict:
    return {
        "side": t.side, "launches": t.launches, "gb": round(t.bytes / 1e9, 2), "tflop": round(t.flop / 1e12, 3),
        "modelled_ms": round(t.modelled(chip) * 1e3, 2), "modelled_ms_with_upload": round(t.modelled(chip, True) * 1e3, 2),
        "update_launches": sum(c.launches for c in t.calls if c.group == "norm and update"),
        "state_gb": round(t.state / 1e9, 2), "activations_gb": round(t.activations / 1e9, 2),
    }  # fmt: skip


def table(traces: Sequence[Trace], chip: Chip, title: str) -> Table:
    shown = Table(title=title)
    for column in ("side", "launches", "GB", "TFLOP", "ms", "ms with upload", "ours is"):
        shown.add_column(column, justify="left" if column == "side" else "right")
    first = traces[0]
    for t in traces:
        row = summary(t, chip)
        shown.add_row(
            t.side, str(row["launches"]), f"{row['gb']:.1f}", f"{row['tflop']:.2f}", f"{row['modelled_ms']:.1f}",
            f"{row['modelled_ms_with_upload']:.1f}", f"{t.modelled(chip) / first.modelled(chip):.2f} ×",
        )  # fmt: skip
    return shown


def by(t: Trace, chip: Chip, what: str, most: int = 100) -> Table:
    """Launches, bytes, operations and time of a side by ``"group"`` or ``"line"``, the longest first."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0, 0, 0, 0])
    for call in t.calls:
        key = getattr(call, what) + (" (backward)" if what == "line" and call.backward else "")
        time = step_seconds([call], chip)
        sums[key] = [a + b for a, b in zip(sums[key], (call.launches, call.bytes, call.flop, time), strict=True)]
    shown = Table(title=f"{t.side} by {what}")
    for column in (what, "launches", "GB", "TFLOP", "ms"):
        shown.add_column(column, justify="left" if column == what else "right")
    for key, (count, size, flop, time) in sorted(sums.items(), key=lambda item: -item[1][3])[:most]:
        shown.add_row(
            key or "(outside the model)", f"{count:.0f}", f"{size / 1e9:.2f}", f"{flop / 1e12:.2f}", f"{time * 1e3:.2f}"
        )
    return shown
