"""What every training run is told: typed dataclasses, read from TOML, overridable on the command line."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

from avfmae.bounds import check_least, check_shares
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
        ema: decay of a running average of the weights, which is written beside them; None: none is kept.
        max_skipped: the run stops after this many steps in a row whose loss or gradient is not finite.
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
    ema: float | None = None
    max_skipped: int = 10

    def __post_init__(self):
        check_least(self, lr=0, min_lr=0, warmup_lr=0, weight_decay=0, layer_decay=0, epochs=1, warmup_epochs=0)
        check_least(self, total_batch=1, micro_batch=1, clip_grad=0, max_skipped=1)
        check_shares(self, "ema")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas: got {self.betas}, expected two shares below 1")


@dataclass
class RunConfig:
    """What all stages share.

    Attributes:
        recipe: a published recipe by its name (base, large, huge, hicmae_base, mae_dfer, svfap, or an ablation); a configuration
            file overrides it.
        config: a TOML file with any of these settings; the command line overrides it.
        out: the run's folder: logs, checkpoints, weights, report. A run found there is continued.
        preset: the model by its name: tiny, demo, base, large, huge, giant, hicmae_base, mae_dfer, svfap, an ablation such as
            ablation_dier, videomae_base or audiomae_base.
        model: the model; by default the preset's, of which single fields are changed by ``[model]`` and ``--model.FIELD``.
        init: weights to start from (safetensors or a released pickle).
        seed: of weights, order, masks and augmentation.
        precision: ``auto`` is bf16 on a GPU and on processors that multiply it, and float32 on others.
        engine: how a step is executed: ``auto`` is ``cuda_graph`` on one GPU, else ``eager``. ``cpu`` is the fastest on a
            CPU: it keeps the optimizer's moments in fewer bits, and updates weights in the backward pass.
        parallel: how several processes share the model: ``ddp``, each has all of it; ``fsdp``, each has a part of every weight,
            gradient and moment, for models that do not fit one GPU (docs/scaling.md).
        compile: let torch.compile have what the kernels leave.
        save_steps: a checkpoint every so many steps, and at the end.
        log_steps: a line of log every so many steps, and in short runs 20 times; between them nothing waits for the device.
        tensorboard: write TensorBoard event files too, beside log.jsonl (``pip install 'avfmae[tensorboard]'``).
        resume_anyway: continue the run that is found in ``out`` though clips, labels or settings that change its results differ.
        stop_after: end the run after this many steps, as if interrupted; for tests and probes.
    """

    recipe: str | None = None
    config: Path | None = None
    out: Path = Path("runs/run")
    preset: str = "base"
    model: ModelConfig = field(default=cast(ModelConfig, None))  # __post_init__ puts the preset's there
    init: Path | None = None
    seed: int = 0
    precision: Literal["auto", "float32", "bf16"] = "auto"
    engine: str = "auto"
    parallel: Literal["ddp", "fsdp"] = "ddp"
    compile: bool = False
    save_steps: int = 500
    log_steps: int = 10
    tensorboard: bool = False
    resume_anyway: bool = False
    stop_after: int | None = None
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self):
        check_least(self, save_steps=1, log_steps=1, stop_after=0)
        self.model = self.model or self.preset_model()

    def preset_model(self) -> ModelConfig:
        """The model of the preset with what this stage changes of it by default."""
        return ModelConfig.preset(self.preset)
