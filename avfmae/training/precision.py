"""The dtype that matrix products are computed in, and the parameters in that dtype."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from avfmae.models.biases import PackedBias
from avfmae.training.parallel import local
from avfmae_kernels import processor

DTYPES = {"bf16": torch.bfloat16, "float32": torch.float32}


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of matrix products. ``"auto"`` is bfloat16 on GPUs and on processors with AVX512-BF16, float32 elsewhere."""
    if precision == "auto":
        precision = "bf16" if device.type == "cuda" or processor.has("avx512_bf16") else "float32"
    return DTYPES[precision]


def linear_parameters(model: nn.Module) -> list[str]:
    """Names of the weights and biases that matrix products read: of linear layers, convolutions and attention."""
    kinds = (nn.Linear, nn.Conv1d, PackedBias)
    return [
        f"{prefix}.{name}"
        for prefix, module in model.named_modules()
        if isinstance(module, kinds)
        for name, _ in module.named_parameters(recurse=False)
    ]


class ComputeParams:
    """The parameters that a model computes with: copies in ``dtype`` of what matrix products read, beside float32 weights.

    Mixed precision (Micikevicius et al., 2018) without autocast's cost: autocast casts every weight in every step, and every
    gradient back. Here the optimizer writes the copies in the pass that updates the weights. Gradients are taken of the copies.

    Attributes:
        of: by float32 parameter, what the model computes with: its copy, or the parameter itself.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype):
        named = dict(model.named_parameters())
        copied = linear_parameters(model) if dtype != torch.float32 else []
        self.of: dict[nn.Parameter, nn.Parameter] = {p: p for p in named.values()}
        self.copies: list[tuple[nn.Module, str, nn.Parameter, nn.Parameter]] = []  # module, name, parameter, copy
        together = {
            f"{path}.{name}": copy
            for path, module in model.named_modules()
            if copied and isinstance(module, PackedBias)
            for name, copy in module.laid_together(dtype).items()
        }
        for full in copied:
            path, _, name = full.rpartition(".")
            values = together[full] if full in together else named[full].detach().to(dtype)
            copy = nn.Parameter(values, requires_grad=named[full].requires_grad)
            self.of[named[full]] = copy
            self.copies.append((model.get_submodule(path), name, named[full], copy))

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """The model computes with the copies, in the backward pass too, where checkpointed blocks run once more."""
        for module, name, _, copy in self.copies:
            module._parameters[name] = copy
        try:
            yield
        finally:
            for module, name, parameter, _ in self.copies:
                module._parameters[name] = parameter

    def follow_frozen(self) -> None:
        """Copies need gradients where their parameters do; weights may be frozen and thawed between two steps."""
        for _, _, parameter, copy in self.copies:
            copy.requires_grad_(parameter.requires_grad)

    @torch.no_grad()
    def refresh(self) -> None:
        """Writes the copies again, after something other than the optimizer has changed the weights."""
        for _, _, parameter, copy in self.copies:
            copy.copy_(parameter)

    def grads(self) -> list[Tensor]:
        """The gradients that are there, in the order of the parameters; of sharded ones this process's parts."""
        return [local(p.grad) for p in self.of.values() if p.grad is not None]

    def drop_grads(self) -> None:
        for p in self.of.values():
            p.grad = None
